"""Connections whose frames are operations: what counts them where a schedule is played for real."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Protocol

from nubes.client import asynchronous, multiplexing, pool
from nubes.client import client as blocking
from nubes.client.connection import Connection, Target
from nubes.client.multiplexing import AsyncConnection, Inbox
from nubes.drivers.local import wire
from nubes.kernel.errors import NubesError
from nubes.storm.attempts import Attempt

_SENT_S = 0.002  # until what an event loop was given to send is on its way

attempt: ContextVar[Attempt | None] = ContextVar("attempt", default=None)  # the one that runs here


class Counter(Protocol):
    def turn(self) -> None: ...
    def done(self) -> None: ...


class _Counted(Connection):
    counter: Counter

    def send(self, data: bytes) -> None:
        frame = wire.unbody(data[4 : 4 + int.from_bytes(data[:4], "little")]) if data else [-1]
        if frame[0] in (wire.CALL, wire.CANCEL):
            self.counter.turn()
        try:
            super().send(data)
        finally:
            if (frame[0] == wire.CALL and not frame[5]) or frame[0] == wire.CANCEL:
                self.counter.done()

    def recv(self) -> list[Any]:
        try:
            frame = super().recv()
        except (NubesError, TimeoutError):
            self.counter.done()
            raise
        if frame[0] in (wire.RESULT, wire.YIELD, wire.ACCEPTED, wire.PENDING):
            self.counter.turn()
            self.counter.done()
        return frame

    def put(self, name: str, arguments: dict[str, Any]) -> list[Any]:
        if name == "store":
            self.counter.turn()
        mine = attempt.get()
        attempt.set(None)  # what is asked takes no number from the calls
        try:
            return super().put(name, arguments)
        finally:
            attempt.set(mine)
            if name == "store":
                self.counter.done()


class _CountedAsync(AsyncConnection):
    """Counts, but does not wait for turns: several operations of one attempt may be under way."""

    counter: Counter

    async def put(self, name: str, arguments: dict[str, Any]) -> list[Any]:
        mine = attempt.get()
        attempt.set(None)
        try:
            return await super().put(name, arguments)
        finally:
            attempt.set(mine)
            if name == "store":
                self.counter.done()

    async def call(self, target: Target, data: bytes, keep: bool = False) -> list[Any]:
        if not keep:
            self.loop.call_later(_SENT_S, self.counter.done)
        try:
            return await super().call(target, data, keep)
        finally:
            self.counter.done()

    async def fetch(self, call: int, timeout: float | None) -> list[Any]:
        try:
            return await super().fetch(call, timeout)
        finally:
            self.counter.done()


class _CountedInbox(Inbox):
    counter: Counter

    def send(self, requests: Mapping[int, bytes]) -> None:
        super().send(requests)
        if requests:
            self._connection.loop.call_later(_SENT_S, self.counter.done)

    async def get(self) -> list[Any]:
        frame = await super().get()
        if frame[0] in (wire.RESULT, wire.YIELD):
            self.counter.done()
        return frame


def install(counter: Counter) -> None:
    """From here on `counter` is told of all operations of this process's client."""
    for cls in (_Counted, _CountedAsync, _CountedInbox):
        cls.counter = counter
    patches: list[tuple[Any, str, type]] = [
        (pool, "Connection", _Counted),
        (blocking, "Connection", _Counted),
        (asynchronous, "AsyncConnection", _CountedAsync),
        (multiplexing, "Inbox", _CountedInbox),
    ]
    for module, name, counted in patches:
        setattr(module, name, counted)
