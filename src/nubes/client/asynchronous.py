"""Many calls at once over one connection of an event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

from nubes import ids
from nubes.client.connection import Target, numbers
from nubes.client.printing import show
from nubes.drivers.local import wire
from nubes.functions.events import FAILED
from nubes.kernel.errors import CallTimeout


class AsyncConnection:
    """Many calls at once over one connection of an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        from nubes.drivers.local.peer import Peer

        self.loop = loop
        self.waiting: dict[int, asyncio.Future[list[Any]]] = {}
        self.streams: dict[int, asyncio.Queue[list[Any]]] = {}
        self.asked: dict[int, asyncio.Future[list[Any]]] = {}
        self.peer = Peer(loop, sock, self._frame, self._lost)
        self.peer.send(wire.pack(wire.HELLO, 1))

    @property
    def closed(self) -> bool:
        return self.peer.closed

    def begin(self, target: Target, data: bytes, keep: bool, route: tuple[str, ...]) -> asyncio.Future[list[Any]]:
        call = ids.new()
        future: asyncio.Future[list[Any]] = self.loop.create_future()
        self.waiting[call] = future
        self.peer.send(
            wire.pack(wire.CALL, call, target.function, target.method, target.variant, keep, target.key, route, data)
        )
        if not keep:
            future.add_done_callback(lambda done: self._cancelled(call) if done.cancelled() else None)
        return future

    async def call(self, target: Target, data: bytes, keep: bool, route: tuple[str, ...]) -> list[Any]:
        return await self.begin(target, data, keep, route)

    async def ask(self, name: str, arguments: dict[str, Any]) -> list[Any]:
        number = next(numbers)
        future = self.asked[number] = self.loop.create_future()
        self.peer.send(wire.pack(wire.ASK, number, name, arguments))
        try:
            frame: list[Any] = await future
            return frame
        except asyncio.CancelledError:
            self.peer.send(wire.pack(wire.UNASK, number))
            raise
        finally:
            self.asked.pop(number, None)

    async def fetch(self, call: int, timeout: float | None) -> list[Any]:
        future = self.waiting.setdefault(call, self.loop.create_future())
        self.peer.send(wire.pack(wire.FETCH, call, timeout is None or timeout > 0))
        try:
            frame = await asyncio.wait_for(asyncio.shield(future), timeout or None)
        except TimeoutError:
            self.waiting.pop(call, None)
            self.peer.send(wire.pack(wire.UNFETCH, call))
            frame = [wire.PENDING]
        if frame[0] == wire.PENDING:
            raise CallTimeout(f"Call {ids.show(call)} has not ended yet.", "It goes on; ask again later.")
        return frame

    async def stream(self, target: Target, data: bytes) -> AsyncIterator[list[Any]]:
        call = ids.new()
        queue = self.streams[call] = asyncio.Queue()
        self.peer.send(
            wire.pack(wire.CALL, call, target.function, target.method, target.variant, False, target.key, (), data)
        )
        ended = False
        try:
            while not ended:
                frame = await queue.get()
                ended = frame[0] == wire.RESULT
                yield frame
        finally:
            del self.streams[call]
            if not ended:
                self._cancelled(call)

    def _cancelled(self, call: int) -> None:
        self.waiting.pop(call, None)
        self.peer.send(wire.pack(wire.CANCEL, call, False))

    def _frame(self, frame: list[Any]) -> None:
        if frame[0] in (wire.RESULT, wire.ACCEPTED, wire.PENDING, wire.YIELD):
            queue = self.streams.get(frame[1])
            if queue is not None:
                queue.put_nowait(frame)
            elif frame[0] != wire.YIELD:
                future = self.waiting.pop(frame[1], None)
                if future is not None and not future.done():
                    future.set_result(frame)
        elif frame[0] == wire.ANSWER:
            answer = self.asked.get(frame[1])
            if answer is not None and not answer.done():
                answer.set_result(frame)
        else:
            show(frame)

    def _lost(self) -> None:
        gone = [wire.RESULT, 0, FAILED, "The control plane went away before the call was answered.", b"", False]
        for future in self.waiting.values():
            if not future.done():
                future.set_result(gone)
        for queue in self.streams.values():
            queue.put_nowait(gone)
        for answer in self.asked.values():
            if not answer.done():
                answer.set_result(
                    [wire.ANSWER, 0, "Unavailable", [gone[3], "Start it again with `nubes up`, then retry."]]
                )

    def close(self) -> None:
        if not self.loop.is_closed():
            self.peer.close()
