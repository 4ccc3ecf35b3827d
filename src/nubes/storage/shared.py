"""What dicts and queues have in common: a name on the control plane, and a life of their own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Iterator
from typing import Any, ClassVar, Generic, Self, TypeVar

from nubes import client as clients
from nubes.storage.names import checked
from nubes.twins import Ask, asking

T = TypeVar("T", bound="Shared")


class Shared:
    """A named object of one kind. It can be passed to functions: what is passed is its name."""

    kind: ClassVar[str]

    def __init__(self, name: str, create_if_missing: bool = False, max_items: int = 0) -> None:
        self.name = checked(self.kind, name)
        self._create = create_if_missing
        self._max_items = max_items

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self._create, self._max_items)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def _ask(self, ask: Ask, operation: str, **arguments: Any) -> Awaitable[Any]:
        named = {"kind": self.kind, "name": self.name, "create": self._create, "max_items": self._max_items}
        return ask("store", operation=operation, arguments={**named, **arguments})

    @classmethod
    @contextlib.contextmanager
    def _ephemeral(cls, max_items: int = 0) -> Iterator[Self]:
        made = cls(f"ephemeral-{os.urandom(8).hex()}", max_items=max_items)
        held = clients.Connection(clients.connect().path)
        try:
            held.ask("hold", {"kind": cls.kind, "name": made.name, "max_items": max_items})
            yield made
        finally:
            held.close()


class Objects(Generic[T]):
    """The named objects of one kind: `Dict.objects`, `Queue.objects`."""

    def __init__(self, cls: type[T]) -> None:
        self._cls = cls

    @asking
    async def create(self, ask: Ask, name: str, *, allow_existing: bool = False) -> None:
        """Makes an object of that name. Raises `UsageError` if there is one already."""
        await self._ask(ask, "store_create", name=checked(self._cls.kind, name), allow_existing=allow_existing)

    @asking
    async def list(self, ask: Ask) -> list[T]:
        """All that have a name, in the order of their names."""
        return [self._cls(name) for name in await self._ask(ask, "store_list")]

    @asking
    async def delete(self, ask: Ask, name: str, *, allow_missing: bool = False) -> None:
        """Removes the object and all that is in it. Raises `NotFound` if there is none."""
        await self._ask(ask, "store_delete", name=name, allow_missing=allow_missing)

    def _ask(self, ask: Ask, operation: str, **arguments: Any) -> Awaitable[Any]:
        return ask("store", operation=operation, arguments={"kind": self._cls.kind, **arguments})
