"""One connection of an event loop to a control plane, with many calls at once on it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from nubes import ids
from nubes.client.connection import Target
from nubes.client.outcomes import LOST, START_AGAIN, not_ended, yields
from nubes.client.printing import show
from nubes.drivers.local import wire
from nubes.kernel.errors import Unavailable


class AsyncConnection:
    """Hands every frame to those who wait for it. Whoever waits when the connection is lost gets `Unavailable`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        from nubes.drivers.local.peer import Peer

        self.loop = loop
        self.inboxes: dict[int, Inbox] = {}  # by call
        self._waiting: dict[int, list[asyncio.Future[list[Any]]]] = {}  # by the number of a call or a question
        self.peer = Peer(loop, sock, self._frame, self._lost)
        self.peer.send(wire.pack(wire.HELLO, 1))

    @property
    def closed(self) -> bool:
        return self.peer.closed

    async def put(self, name: str, arguments: dict[str, Any]) -> list[Any]:
        """Puts a question to the control plane; the frame with its answer."""
        number = ids.new()
        try:
            return await self._answer(number, wire.pack(wire.ASK, number, name, arguments))
        except asyncio.CancelledError:
            self.peer.send(wire.pack(wire.UNASK, number))
            raise

    async def call(self, target: Target, data: bytes, keep: bool = False) -> list[Any]:
        """Makes a call; the frame with its result, or with `keep` the one that says it is accepted."""
        call = ids.new()
        try:
            frame = await self._answer(call, target.request(call, keep, data))
        except asyncio.CancelledError:
            if not keep:
                self.cancel(call)
            raise
        if frame[0] == wire.YIELD:
            self.cancel(call)
            raise yields()
        return frame

    async def fetch(self, call: int, timeout: float | None) -> list[Any]:
        """The RESULT frame of a spawned call, if it comes within `timeout` seconds."""
        waits = timeout is None or timeout > 0
        frame: list[Any] = [wire.PENDING]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout or None):
                frame = await self._answer(call, wire.pack(wire.FETCH, call, waits))
                while waits and frame[0] == wire.PENDING:  # that was for another, who only looked
                    frame = await self._answer(call, wire.pack(wire.FETCH, call, waits))
        if frame[0] == wire.PENDING:
            if waits and call not in self._waiting:
                self.peer.send(wire.pack(wire.UNFETCH, call))
            raise not_ended(call)
        return frame

    @contextlib.contextmanager
    def inbox(self) -> Iterator[Inbox]:
        """For calls with more than one frame, or many calls; those that are under way at its end are cancelled."""
        inbox = Inbox(self)
        try:
            yield inbox
        finally:
            for call in inbox.calls:
                del self.inboxes[call]
                self.cancel(call)

    def cancel(self, call: int) -> None:
        self.peer.send(wire.pack(wire.CANCEL, call, False))

    async def _answer(self, number: int, request: bytes) -> list[Any]:
        future: asyncio.Future[list[Any]] = self.loop.create_future()
        self._waiting.setdefault(number, []).append(future)
        self.peer.send(request)
        try:
            return await future
        finally:
            others = self._waiting.get(number)
            if others and future in others:
                others.remove(future)
                if not others:
                    del self._waiting[number]

    def _frame(self, frame: list[Any]) -> None:
        if frame[0] == wire.LOG:
            show(frame)
        elif (futures := self._waiting.pop(frame[1], None)) is not None:
            for future in futures:
                if not future.done():
                    future.set_result(frame)
        elif (inbox := self.inboxes.get(frame[1])) is not None:
            inbox.put(frame)

    def _lost(self) -> None:
        for futures in self._waiting.values():
            for future in futures:
                if not future.done():
                    future.set_exception(Unavailable(LOST, START_AGAIN))
        for inbox in set(self.inboxes.values()):
            inbox.put(None)

    def close(self) -> None:
        if not self.loop.is_closed():
            self.peer.close()


class Inbox:
    """The frames of some calls, in the order in which they came."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.calls: set[int] = set()  # under way
        self._connection = connection
        self._frames: asyncio.Queue[list[Any] | None] = asyncio.Queue()

    def send(self, requests: Mapping[int, bytes]) -> None:
        """Makes calls, by their ids."""
        self.calls.update(requests)
        self._connection.inboxes.update(dict.fromkeys(requests, self))
        self._connection.peer.send(b"".join(requests.values()))

    def put(self, frame: list[Any] | None) -> None:
        """A frame that came; None if no more will."""
        if frame is not None and frame[0] == wire.RESULT:
            self.calls.discard(frame[1])
            del self._connection.inboxes[frame[1]]
        self._frames.put_nowait(frame)

    async def get(self) -> list[Any]:
        """The next frame. Raises `Unavailable` if the connection was lost before it came."""
        frame = await self._frames.get()
        if frame is None:
            raise Unavailable(LOST, START_AGAIN)
        return frame
