"""The shared dicts and queues of a control plane.

All work on their tables is done by one thread; what is asked for while it is busy goes into its next transaction,
so that many share one flush. An answer is given when its transaction is on disk. Waiting for an item, or for room, is a
future that the next put, or get, resolves: nothing polls.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from nubes.drivers.local.store_operations import OPERATIONS, Operation
from nubes.drivers.local.tables import Tables
from nubes.kernel.errors import Unavailable


class Stores:
    """Answers the ask `store`. `answer` raises `NotFound` for a store that does not exist and may not be made."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._thread = ThreadPoolExecutor(1, "nubes-stores")
        self._asked: list[tuple[Operation, dict[str, Any], asyncio.Future[Any]]] = []
        self._busy = False
        self._lines: dict[tuple[str, str, str], deque[asyncio.Future[None]]] = {}

    async def answer(self, operation: str, arguments: dict[str, Any]) -> Any:
        if operation == "queue_get":
            return (await self.take(arguments))[0]
        if operation == "queue_put":
            return await self._put(arguments)
        done = await self._do(operation, arguments)
        if operation in ("queue_clear", "store_delete"):
            self._wake("room", arguments["name"], None)
            self._wake("items", arguments["name"], None)
        return done

    def close(self) -> None:
        """Waits for the transaction under way."""
        self._thread.submit(self._tables.close)
        self._thread.shutdown()

    def drop(self, kind: str, name: str) -> None:
        """Removes a store that nobody is to use any more."""
        self._do("store_delete", {"kind": kind, "name": name, "allow_missing": True})

    # -- waiting -------------------------------------------------------------------------------------------------

    async def take(self, arguments: dict[str, Any]) -> tuple[list[bytes], Callable[[], None] | None]:
        """Up to `count` items, in order, and what puts them back where they were, if there are any.

        Waits for the first of them up to `timeout` seconds, forever if None.
        """
        name, partition = arguments["name"], arguments["partition"]

        def give_back(rows: list[tuple[int, bytes]]) -> None:
            self._do("queue_return", {**arguments, "rows": rows})
            self._wake("items", name, partition, len(rows))

        rows = await self._when("items", arguments, "queue_take", give_back)
        self._wake("room", name, partition, len(rows or ()))
        if not rows:
            return [], None
        return [value for _, value in rows], partial(give_back, rows)

    async def _put(self, arguments: dict[str, Any]) -> bool:
        """Appends `values`, all or none; waits for room as `take` does for items. False if there was none in time."""
        done = await self._when("room", arguments, "queue_append", lambda _: None)
        if done:
            self._wake("items", arguments["name"], arguments["partition"], len(arguments["values"]))
        return bool(done)

    async def _when(
        self, what: str, arguments: dict[str, Any], operation: str, give_back: Callable[[Any], None]
    ) -> Any:
        """Tries `operation`, again each time `what` may have come, until its result is not empty."""
        loop = asyncio.get_running_loop()
        timeout = arguments["timeout"]
        until = None if timeout is None else loop.time() + timeout
        key = (what, arguments["name"], arguments["partition"])
        while True:
            turn: asyncio.Future[None] = loop.create_future()
            line = self._lines.setdefault(key, deque())
            line.append(turn)
            came = False
            work = self._do(operation, arguments)
            try:
                result = await asyncio.shield(work)
                left = None if until is None else until - loop.time()
                if result or (left is not None and left <= 0):
                    return result
                await asyncio.wait_for(turn, left)
                came = True
            except TimeoutError:
                continue  # looks one last time
            except asyncio.CancelledError:
                work.add_done_callback(lambda done: _undo(done, give_back))
                raise
            finally:
                if turn in line:
                    line.remove(turn)
                if not line and self._lines.get(key) is line:
                    del self._lines[key]
                if turn.done() and not turn.cancelled() and not came:
                    self._wake(*key)  # it was called up, and leaves: the next one's turn

    def _wake(self, what: str, name: str, partition: str | None, count: int = 1) -> None:
        """Lets the first `count` who wait look again; all partitions, and all who wait, if `partition` is None."""
        for key in [key for key in self._lines if key[:2] == (what, name) and partition in (None, key[2])]:
            line = self._lines[key]
            left = len(line) if partition is None else count
            while line and left > 0:
                turn = line.popleft()
                if not turn.done():
                    turn.set_result(None)
                    left -= 1

    # -- working -------------------------------------------------------------------------------------------------

    def _do(self, operation: str, arguments: dict[str, Any]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked.append((OPERATIONS[operation], arguments, future))
        if not self._busy:
            self._next()
        return future

    def _next(self) -> None:
        batch, self._asked = self._asked, []
        self._busy = bool(batch)
        if batch:
            loop = asyncio.get_running_loop()
            work = loop.run_in_executor(
                self._thread, self._tables.transact, [(do, arguments) for do, arguments, _ in batch]
            )
            work.add_done_callback(lambda done: self._committed(done, [future for _, _, future in batch]))

    def _committed(self, done: asyncio.Future[list[Any]], futures: list[asyncio.Future[Any]]) -> None:
        failed = done.exception()
        results = done.result() if failed is None else [_unavailable(self._tables.where, failed)] * len(futures)
        for future, result in zip(futures, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
        self._next()


def _unavailable(where: str, error: BaseException) -> Unavailable:
    return error if isinstance(error, Unavailable) else Unavailable(f"{where} cannot be used: {error}.")


def _undo(done: asyncio.Future[Any], give_back: Callable[[Any], None]) -> None:
    if not done.cancelled() and done.exception() is None and done.result():
        give_back(done.result())
