"""Queue: a first-in, first-out queue that functions and clients share."""

from __future__ import annotations

import queue
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from nubes.kernel.errors import UsageError
from nubes.kernel.units import seconds
from nubes.storage.names import packed, unpacked
from nubes.storage.shared import Objects, Shared
from nubes.twins import Ask, asking

MAX_ITEMS = 100_000


class Queue(Shared):
    """A named queue on the control plane, in partitions that know nothing of each other ("" unless one is named).

    What a call put is on disk when the call returns, and goes to one taker. `max_items` bounds each partition: a put
    then waits for room. It holds from the queue's making on.
    """

    kind = "queue"
    objects: ClassVar[Objects[Queue]]

    def __init__(self, name: str, create_if_missing: bool = False, max_items: int = MAX_ITEMS) -> None:
        if max_items < 1:
            raise UsageError(f"max_items={max_items} leaves no room.", "Write one or more.")
        super().__init__(name, create_if_missing, max_items)

    @classmethod
    def from_name(cls, name: str, *, create_if_missing: bool = False, max_items: int = MAX_ITEMS) -> Queue:
        """The queue of that name. Nothing is asked until it is used; then `NotFound` if there is none."""
        return cls(name, create_if_missing, max_items)

    @classmethod
    def ephemeral(cls, *, max_items: int = MAX_ITEMS) -> AbstractContextManager[Queue]:
        """`with Queue.ephemeral() as q:` a queue that is gone after the block."""
        return cls._ephemeral(max_items)

    @asking
    async def get(
        self, ask: Ask, block: bool = True, timeout: str | float | None = None, *, partition: str = ""
    ) -> Any:
        """Takes the oldest item; waits up to `timeout`, then raises `queue.Empty`. Without `block`: None at once."""
        values = await self._ask(ask, "queue_get", count=1, partition=partition, timeout=_wait_s(block, timeout))
        if values:
            return unpacked(values[0])
        if block:
            raise queue.Empty
        return None

    @asking
    async def get_many(
        self, ask: Ask, n_values: int, block: bool = True, timeout: str | float | None = None, *, partition: str = ""
    ) -> list[Any]:
        """Takes up to `n_values` of the oldest items; waits as `get` does for the first of them, not for the others."""
        if n_values < 1:
            raise UsageError(f"n_values={n_values} asks for nothing.", "Write one or more.")
        wait_s = _wait_s(block, timeout)
        values = await self._ask(ask, "queue_get", count=n_values, partition=partition, timeout=wait_s)
        if not values and block:
            raise queue.Empty
        return [unpacked(value) for value in values]

    @asking
    async def put(
        self, ask: Ask, value: Any, block: bool = True, timeout: str | float | None = None, *, partition: str = ""
    ) -> None:
        """Appends an item; waits for room up to `timeout`, then (without `block`, at once) raises `queue.Full`."""
        await self._put(ask, [value], block, timeout, partition)

    @asking
    async def put_many(
        self,
        ask: Ask,
        values: Iterable[Any],
        block: bool = True,
        timeout: str | float | None = None,
        *,
        partition: str = "",
    ) -> None:
        """Appends items in their order, all or none; waits for room as `put` does."""
        await self._put(ask, list(values), block, timeout, partition)

    async def _put(self, ask: Ask, values: list[Any], block: bool, timeout: str | float | None, partition: str) -> None:
        if not values:
            return
        data = [packed(value) for value in values]
        if not await self._ask(ask, "queue_put", values=data, partition=partition, timeout=_wait_s(block, timeout)):
            raise queue.Full

    @asking
    async def len(self, ask: Ask, *, partition: str = "", total: bool = False) -> int:
        """How many items one partition holds, or all of them."""
        return int(await self._ask(ask, "queue_len", partition=None if total else partition))

    @asking
    async def iterate(self, ask: Ask, *, partition: str = "") -> list[Any]:
        """The items of this moment, oldest first; they stay in the queue."""
        return [unpacked(value) for value in await self._ask(ask, "queue_items", partition=partition)]

    @asking
    async def clear(self, ask: Ask, *, partition: str = "", all: bool = False) -> None:
        """Removes the items of one partition, or of all."""
        await self._ask(ask, "queue_clear", partition=None if all else partition)

    def __len__(self) -> int:
        return self.len()

    def __bool__(self) -> bool:
        return True


def _wait_s(block: bool, timeout: str | float | None) -> float | None:
    if not block:
        return 0.0
    return None if timeout is None else seconds(timeout, "timeout")


Queue.objects = Objects(Queue)
