"""What stayed on one machine and is needed on another: asked for, and waited for."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from nubes.drivers.local import payload, stayed
from nubes.drivers.remote import messages
from nubes.drivers.remote.carrying import Carrier

if TYPE_CHECKING:
    from nubes.drivers.remote.agents import Member


class Fetches:
    """Inputs of calls on their way here. `moved` is told of each call whose input has come, and lies here now."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, carrier: Carrier, segments: payload.Segments,
        moved: Callable[[int, bytes], None],
    ) -> None:  # fmt: skip
        self._loop = loop
        self._carrier = carrier
        self._segments = segments
        self._moved = moved
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[int, int, asyncio.Future[bytes | None]]] = {}  # -> machine, call

    def all(
        self, calls: Sequence[int], inputs: Sequence[bytes], machine: int, members: Mapping[int, Member]
    ) -> asyncio.Future[list[bytes | None]]:
        """The inputs of calls that are to run on a machine, those that lie elsewhere fetched; None for who is lost."""
        waiting = []
        for call, data in zip(calls, inputs, strict=True):
            future = self._loop.create_future()
            waiting.append(future)
            found = stayed.where(data)
            if found is None or found[0] == machine:
                future.set_result(data)
            elif found[0] not in members:
                future.set_result(None)
            else:
                number = next(self._numbers)
                self._waiting[number] = found[0], call, future
                members[found[0]].line.send(messages.encode(messages.Fetch(number, found[2])))
        return asyncio.gather(*waiting)

    def came(self, news: messages.Fetched) -> None:
        """It is put where it can be read here, which takes a while."""
        carrier, segments = self._carrier, self._segments
        if news.number in self._waiting:
            work = self._loop.run_in_executor(
                None, lambda: payload.landed(carrier.unpack(news.data, segments), segments)
            )
            work.add_done_callback(lambda done: self._landed(news.number, done))

    def _landed(self, number: int, done: asyncio.Future[bytes]) -> None:
        waiting = self._waiting.pop(number, None)
        if waiting is None:
            return
        _, call, future = waiting
        if done.exception() is None:
            self._moved(call, done.result())
        future.set_result(None if done.exception() else done.result())

    def lost(self, machine: int) -> None:
        """A machine is gone, and what stayed there."""
        for number, (where, _, future) in list(self._waiting.items()):
            if where == machine:
                del self._waiting[number]
                future.set_result(None)
