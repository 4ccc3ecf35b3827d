"""How large payloads get from machine to machine."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, Protocol

from nubes.drivers.local import payload


class Carrier(Protocol):
    """`pack` makes a payload for another machine, which can `unpack` it; if it `waits`, that takes long.

    `to` is the name of an agent's machine; an agent, which has but one way to go, gives its segments away: to "".
    """

    def pack(self, data: bytes, to: str) -> bytes: ...
    def waits(self, data: bytes) -> bool: ...
    def unpack(self, data: bytes, segments: payload.Segments) -> bytes: ...


class Inline:
    """Large buffers go along with the messages."""

    def pack(self, data: bytes, to: str) -> bytes:
        return payload.carried(data, last=not to)

    def waits(self, data: bytes) -> bool:
        return False

    def unpack(self, data: bytes, segments: payload.Segments) -> bytes:
        return data


Begin = Callable[[], "asyncio.Future[Any]"]


class InOrder:
    """What follows from things that take a while, in the order in which they came, for each key."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lines: dict[Hashable, deque[tuple[Begin | None, Callable[[Any], None]]]] = {}

    def work(self, work: Callable[[], Any]) -> Begin:
        """Something that is done in a thread."""
        return lambda: self._loop.run_in_executor(None, work)

    def do(self, key: Hashable, begin: Begin | None, then: Callable[[Any], None]) -> None:
        """Calls `then` with what comes of `begin`, or with its exception; at once if there is nothing to wait for."""
        line = self._lines.get(key)
        if line is not None:
            line.append((begin, then))
        elif begin is None:
            then(None)
        else:
            self._lines[key] = deque([(begin, then)])
            self._next(key)

    def _next(self, key: Hashable) -> None:
        line = self._lines[key]
        while line:
            begin, then = line[0]
            if begin is not None:
                begin().add_done_callback(lambda done: self._done(key, done))
                return
            line.popleft()
            then(None)
        del self._lines[key]

    def _done(self, key: Hashable, done: asyncio.Future[Any]) -> None:
        _, then = self._lines[key].popleft()
        then(done.exception() or done.result())
        self._next(key)
