"""Dict: a dictionary that functions and clients share."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from nubes.storage.names import packed, unpacked
from nubes.storage.shared import Objects, Shared
from nubes.twins import Ask, asking


class Dict(Shared):
    """A named dictionary on the control plane. What a call put is on disk when the call returns.

    Keys and values are anything that pickles; keys are the same if their pickles are (1 and True are two keys). What
    comes out is a copy: to change a value, put it again.
    """

    kind = "dict"
    objects: ClassVar[Objects[Dict]]

    @classmethod
    def from_name(cls, name: str, *, create_if_missing: bool = False) -> Dict:
        """The dict of that name. Nothing is asked until it is used; then `NotFound` if there is none."""
        return cls(name, create_if_missing)

    @classmethod
    def ephemeral(cls) -> AbstractContextManager[Dict]:
        """`with Dict.ephemeral() as d:` a dict that is gone after the block."""
        return cls._ephemeral()

    @asking
    async def get(self, ask: Ask, key: Any, default: Any = None) -> Any:
        """The value of `key`, or `default`."""
        value = await self._ask(ask, "dict_get", key=packed(key))
        return default if value is None else unpacked(value)

    @asking
    async def put(self, ask: Ask, key: Any, value: Any, *, skip_if_exists: bool = False) -> bool:
        """Sets `key`. With `skip_if_exists` only if it is new; whether it was set."""
        pairs = [(packed(key), packed(value))]
        return bool(await self._ask(ask, "dict_put", pairs=pairs, skip=skip_if_exists))

    @asking
    async def update(self, ask: Ask, other: Mapping[Any, Any] = {}, /, **pairs: Any) -> None:
        """Sets many keys, all or none."""
        both = [(packed(key), packed(value)) for key, value in {**other, **pairs}.items()]
        await self._ask(ask, "dict_put", pairs=both)

    @asking
    async def pop(self, ask: Ask, key: Any, *default: Any) -> Any:
        """Removes `key` and returns its value; `default` if there is none, or `KeyError`."""
        value = await self._ask(ask, "dict_pop", key=packed(key))
        if value is not None:
            return unpacked(value)
        if default:
            return default[0]
        raise KeyError(key)

    @asking
    async def contains(self, ask: Ask, key: Any) -> bool:
        """Whether `key` is there."""
        return await self._ask(ask, "dict_get", key=packed(key)) is not None

    @asking
    async def len(self, ask: Ask) -> int:
        """How many keys there are."""
        return int(await self._ask(ask, "dict_len"))

    @asking
    async def keys(self, ask: Ask) -> list[Any]:
        """The keys, in the order in which they came first."""
        return [unpacked(key) for key, _ in await self._ask(ask, "dict_items", what="keys")]

    @asking
    async def values(self, ask: Ask) -> list[Any]:
        """The values, in the order of their keys."""
        return [unpacked(value) for _, value in await self._ask(ask, "dict_items", what="values")]

    @asking
    async def items(self, ask: Ask) -> list[tuple[Any, Any]]:
        """The pairs of key and value, all of one moment."""
        return [(unpacked(key), unpacked(value)) for key, value in await self._ask(ask, "dict_items", what="items")]

    @asking
    async def clear(self, ask: Ask) -> None:
        """Removes all keys."""
        await self._ask(ask, "dict_clear")

    def __getitem__(self, key: Any) -> Any:
        value = self.get(key, _MISSING)
        if value is _MISSING:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        self.put(key, value)

    def __delitem__(self, key: Any) -> None:
        self.pop(key)

    def __contains__(self, key: Any) -> bool:
        return self.contains(key)

    def __len__(self) -> int:
        return self.len()

    def __bool__(self) -> bool:
        return True


_MISSING = object()
Dict.objects = Objects(Dict)
