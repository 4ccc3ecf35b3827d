"""What stayed on one machine and is needed on another: asked for, and waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from nubes.drivers.local import payload, stayed
from nubes.drivers.local.inputs import Inputs
from nubes.drivers.remote import messages
from nubes.drivers.remote.carrying import Carrier

if TYPE_CHECKING:
    from nubes.drivers.remote.agents import Member

Found = asyncio.Future[bytes | None]  # None: it is lost


class Fetches:
    """Inputs of calls on their way here. Once they have come, `inputs` knows them as they are here."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, carrier: Carrier, segments: payload.Segments, inputs: Inputs,
        members: Mapping[int, Member],
    ) -> None:  # fmt: skip
        self._loop = loop
        self._carrier = carrier
        self._segments = segments
        self._inputs = inputs
        self._members = members
        self._coming: dict[int, tuple[int, Found]] = {}  # by call: the machine it comes from

    def for_machine(
        self, machine: int, calls: Sequence[int], inputs: Sequence[bytes]
    ) -> asyncio.Future[list[bytes | None]]:
        """The inputs of calls that are to run on a machine, those that lie elsewhere fetched; None for who is lost."""
        found = [self._found(machine, call, data) for call, data in zip(calls, inputs, strict=True)]
        return asyncio.gather(*found)

    def home(self, machine: int, then: Callable[[], object]) -> None:
        """Fetches all that stayed on a machine, which is to go, and calls `then`."""
        left = [(call, data) for call, data in self._inputs.items() if stayed.is_on(data, machine)]
        if left:
            coming = asyncio.gather(*(self._found(0, call, data) for call, data in left))
            coming.add_done_callback(lambda _: then())
        else:
            then()

    def forget(self, data: bytes) -> None:
        """Nobody needs it any more, wherever it is."""
        where = stayed.where(data)
        if where is None:
            stayed.drop(data)
        elif where[0] in self._members:
            self._members[where[0]].line.send(messages.encode(messages.Forget(where[2])))

    def _found(self, machine: int, call: int, data: bytes) -> Found:
        where = stayed.where(data)
        if where is not None and where[0] != machine:
            return self._fetch(call, where[0], where[2])
        here: Found = self._loop.create_future()
        here.set_result(data)
        return here

    def _fetch(self, call: int, machine: int, data: bytes) -> Found:
        """Asks for it, unless it is on its way."""
        if call in self._coming:
            return self._coming[call][1]
        future: Found = self._loop.create_future()
        member = self._members.get(machine)
        if member is None:
            future.set_result(None)
        else:
            self._coming[call] = machine, future
            member.line.send(messages.encode(messages.Fetch(call, data)))
        return future

    def came(self, news: messages.Fetched) -> None:
        """It is put where it can be read here, which takes a while."""
        carrier, segments = self._carrier, self._segments
        work = self._loop.run_in_executor(None, lambda: payload.landed(carrier.unpack(news.data, segments), segments))
        work.add_done_callback(lambda done: self._landed(news.call, done))

    def _landed(self, call: int, done: asyncio.Future[bytes]) -> None:
        _, future = self._coming.pop(call, (0, None))
        error = done.exception()
        if error is None:
            self._inputs.moved(call, done.result())
        if future is not None:
            future.set_result(None if error is not None else done.result())

    def lost(self, machine: int) -> None:
        """A machine is gone, and what stayed there."""
        for call in [call for call, (where, _) in self._coming.items() if where == machine]:
            self._coming.pop(call)[1].set_result(None)
