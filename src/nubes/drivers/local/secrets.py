"""The secrets of a control plane: in its memory, and where they are kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from typing import Protocol

from nubes.kernel.errors import NotFound, UsageError

ANONYMOUS = "anonymous-"  # how the names of secrets begin that came with an app
_UNUSED_S = 3600.0  # how long such a secret is kept that no function uses


class Keeper(Protocol):
    """Keeps secrets for good: files, or a table."""

    def load(self) -> dict[str, tuple[dict[str, str], float]]:
        """All secrets: their values, and when each was stored."""

    def store(self, name: str, values: Mapping[str, str]) -> None: ...
    def remove(self, name: str) -> None: ...
    def close(self) -> None: ...


class Secrets:
    """Reads all there are at once; from then on nobody else writes them."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._kept = keeper.load()
        self._turn = asyncio.Lock()

    def values(self, name: str) -> dict[str, str]:
        """What a secret holds; nothing if there is none of that name."""
        return self._kept.get(name, ({}, 0.0))[0]

    def listed(self) -> list[str]:
        """The names of the secrets that were given one."""
        return sorted(name for name in self._kept if not name.startswith(ANONYMOUS))

    def check(self, name: str, required: Collection[str]) -> None:
        """Raises `NotFound` if the secret is not there or lacks a key."""
        if name not in self._kept:
            known = ", ".join(self.listed()) or "none"
            raise NotFound(
                f"There is no secret named {name!r}.",
                f"Secret.objects.create({name!r}, ...) stores one; there are: {known}.",
            )
        missing = [key for key in required if key not in self.values(name)]
        if missing:
            raise NotFound(f"Secret {name!r} has no {', '.join(missing)}.", "Store it again with all its keys.")

    async def put(self, name: str, values: Mapping[str, str], replace: bool) -> None:
        """Stores a secret, whole or not at all. Raises `UsageError` if it is there and may not be replaced."""
        if not name or "/" in name or name.startswith("."):
            raise UsageError(f"{name!r} cannot be the name of a secret.", "Use letters, digits, dashes and dots.")
        async with self._turn:
            if name in self._kept and not replace:
                raise UsageError(
                    f"There is a secret named {name!r} already.", "Choose another name, or allow_existing=True."
                )
            await asyncio.to_thread(self._keeper.store, name, values)
            self._kept[name] = dict(values), time.time()

    async def delete(self, name: str, allow_missing: bool) -> None:
        """Raises `NotFound` if there is no such secret."""
        async with self._turn:
            if name in self._kept:
                await asyncio.to_thread(self._keeper.remove, name)
                del self._kept[name]
            elif not allow_missing:
                raise NotFound(
                    f"There is no secret named {name!r}.", f"There are: {', '.join(self.listed()) or 'none'}."
                )

    async def tidy(self, used: Collection[str]) -> None:
        """Removes secrets that came with an app which is gone."""
        old = time.time() - _UNUSED_S
        gone = [n for n, (_, at) in self._kept.items() if n.startswith(ANONYMOUS) and n not in used and at < old]
        for name in gone:
            await self.delete(name, True)

    def close(self) -> None:
        self._keeper.close()
