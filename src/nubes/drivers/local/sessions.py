"""Clients of the control plane: one session per connection on its Unix socket."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from nubes.drivers.local import payload, sockets, wire
from nubes.drivers.local.control_plane import ControlPlane
from nubes.drivers.local.peer import Peer
from nubes.functions import events as e
from nubes.functions.events import FAILED
from nubes.functions.spec import FunctionSpec
from nubes.kernel.errors import NubesError, Unavailable, UsageError

PROTOCOL = 1
_owners = itertools.count(1)

Ask = Callable[["Session", dict[str, Any]], Awaitable[Any]]
ASKS: dict[str, Ask] = {}


def ask(handler: Ask) -> Ask:
    """Makes a coroutine of (session, arguments) an answer to the question of its name."""
    ASKS[handler.__name__] = handler
    return handler


def listen(plane: ControlPlane, stop: asyncio.Event) -> socket.socket:
    """Opens `<data folder>/socket` for clients."""
    from nubes.drivers.local import asks  # noqa: F401  (fills ASKS)

    listener = sockets.listen(plane.folder / "socket")
    plane.visitors = lambda sock: Session(plane, sock, stop, remote=True)  # on other machines

    def accept() -> None:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        Session(plane, connection, stop)

    plane.loop.add_reader(listener.fileno(), accept)
    return listener


class Session:
    """One client: its calls, and what it waits for."""

    def __init__(self, plane: ControlPlane, sock: socket.socket, stop: asyncio.Event, remote: bool = False) -> None:
        self.plane = plane
        self.remote = remote  # on another machine: shares no memory with this one
        self.stop = stop
        self.owner = next(_owners)
        self.pid = 0 if remote else struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        plane.clients[self.pid] += 1
        self.calls: set[int] = set()
        self.watched: set[int] = set()
        self.apps: set[str] = set()  # ephemeral ones, which go with it
        self.tasks: dict[int, asyncio.Task[None]] = {}  # by the number of what was asked
        self.at_end: list[Callable[[], object]] = []
        self.follows: Callable[[], None] | None = None
        self.unless_read: Callable[[], object] | None = None  # what takes back the answer that is about to be sent
        self._take_back: Callable[[], object] | None = None  # the same, of the last frame that was sent
        self.peer = Peer(plane.loop, sock, self._frame, self._gone)

    # -- the Sink that calls report to ---------------------------------------------------------------------------

    def result(self, call: int, status: str, reason: str, output: bytes, released: bool = False) -> None:
        self.calls.discard(call)
        self.watched.discard(call)
        if self.peer.closed and output[:1] == b"S" and not payload.is_object(segment := payload.segment_of(output)):
            payload.discard(segment)
        elif self.remote:
            output = payload.carried(output, last=True)
        self._send(wire.pack(wire.RESULT, call, status, reason, output, released))

    def item(self, call: int, output: bytes) -> None:
        self._send(wire.pack(wire.YIELD, call, payload.carried(output, last=True) if self.remote else output))

    def printed(self, call: int, function: str, stream: str, text: str) -> None:
        self._send(wire.pack(wire.LOG, call, function, stream, text))

    # -- frames --------------------------------------------------------------------------------------------------

    def _frame(self, frame: list[Any]) -> None:
        kind = frame[0]
        if kind == wire.CALL:
            self._call(*frame[1:])
        elif kind == wire.FETCH:
            self._fetch(frame[1], frame[2])
        elif kind == wire.UNFETCH:
            self.watched.discard(frame[1])
            self.plane.unwatch(frame[1], self)
        elif kind == wire.CANCEL:
            self.plane.feed(e.Cancelled(frame[1], frame[2]))
        elif kind == wire.ASK:
            task = self.plane.loop.create_task(self._ask(frame[1], frame[2], frame[3]))
            self.tasks[frame[1]] = task
            task.add_done_callback(lambda _: self.tasks.pop(frame[1], None))
        elif kind == wire.UNASK:
            if frame[1] in self.tasks:
                self.tasks[frame[1]].cancel()
        elif kind == wire.HELLO:
            plane = self.plane
            about = PROTOCOL, str(plane.shared), str(plane.folder), os.getpid(), plane.objects
            self._send(wire.pack(wire.WELCOME, *about))

    def _call(
        self, call: int, function: str, method: str, variant: str, keep: bool, key: str, route: list[str], data: bytes
    ) -> None:
        if keep and self.remote:
            data = payload.landed(data, self.plane.durable)
        kept = data if keep else b""
        owner, near = 0 if keep else self.owner, self.plane.near(data)
        event = e.Submitted(call, function, keep, method, variant, tuple(route), key, kept, owner, near)
        try:
            if keep:
                self.plane.submit(event, data, self)
                if self.plane.sinks.pop(call, None) is not None:  # else it was refused, and the client has been told
                    actual = self.plane.controller.keys.get((function + variant, key), call) if key else call
                    accept = lambda: self._kept(call, actual)  # noqa: E731
                    self.plane.journal.when_safe(accept, lambda why: self._not_kept(call, why))
            else:
                self.calls.add(call)
                self.plane.submit(event, data, self)
        except NubesError as error:
            kind = "unavailable: " if isinstance(error, Unavailable) else ""
            self.result(call, FAILED, kind + str(error), b"")

    def _kept(self, call: int, actual: int) -> None:
        """The call is on disk, or shares the work of `actual`, unless that was refused meanwhile."""
        controller = self.plane.controller
        if actual in controller.calls or actual in controller.results:
            self._send(wire.pack(wire.ACCEPTED, call, actual))
        else:
            why = "The call of the same key that it was to share was not accepted, nor was this one."
            self.result(call, FAILED, f"unavailable: {why}", b"")

    def _not_kept(self, call: int, why: str) -> None:
        """The call could not be written down: it is withdrawn, and the client told so."""
        said = withdraw(self.plane, call)
        self.result(call, FAILED, f"unavailable: {why} {said}", b"")

    def _fetch(self, call: int, wait: bool) -> None:
        controller = self.plane.controller
        if not wait and call in controller.calls and call not in controller.results:
            self._send(wire.pack(wire.PENDING, call))
        elif self.plane.watch(call, self):
            self.watched.add(call)
        else:
            reason = "No call of this id is known: its answer was forgotten, or it never was."
            self._send(wire.pack(wire.RESULT, call, FAILED, reason, b"", False))

    async def _ask(self, number: int, name: str, arguments: dict[str, Any]) -> None:
        try:
            handler = ASKS.get(name)
            if handler is None:
                raise UsageError(
                    f"This control plane does not know {name!r}.", "Use the same version of nubes on both sides."
                )
            answer, failed = await handler(self, arguments), ""
        except NubesError as error:
            answer, failed = [error.message, error.hint], type(error).__name__
        except Exception as error:
            answer, failed = [f"{type(error).__name__}: {error}", ""], "NubesError"
        take_back, self.unless_read = self.unless_read, None
        self._send(wire.pack(wire.ANSWER, number, failed, answer), take_back)

    def _send(self, frame: bytes, take_back: Callable[[], object] | None = None) -> None:
        """All that goes to the client goes through here. `take_back`: to be called if it certainly was not read."""
        if self.peer.closed and take_back is not None:
            take_back()
        self._take_back = take_back
        self.peer.send(frame)

    def _gone(self) -> None:
        if self.peer.unread and self._take_back is not None:
            self._take_back()
        for task in self.tasks.values():
            task.cancel()
        for finish in self.at_end:
            finish()
        for call in self.watched:
            self.plane.unwatch(call, self)
        if self.calls or self.apps:
            self.plane.feed(e.ClientGone(self.owner, tuple(sorted(self.apps))))
        self.plane.clients[self.pid] -= 1
        if not self.plane.clients[self.pid]:
            del self.plane.clients[self.pid]
            if not self.remote:
                payload.clean(self.plane.shared, self.pid)


def withdraw(plane: ControlPlane, call: int) -> str:
    """Takes a durable call back that could not be written down; what its caller is to be told.

    One that is done by then stays: it would be done twice, by a caller that was told that it had not been accepted.
    """
    if call in plane.controller.results:
        return "The call was done all the same; with an idempotency key it may safely be made again."
    plane.feed(e.Cancelled(call, terminate=True, refused=True))
    return "The call was not accepted."


def specs_from(raw: list[bytes]) -> tuple[FunctionSpec, ...]:
    """Function specs as they come over the wire. Raises `UsageError` on what is none."""
    try:
        return tuple(msgspec.msgpack.decode(one, type=FunctionSpec) for one in raw)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"A function's declaration cannot be read: {error}.", "Use the same version of nubes on both sides."
        ) from None
