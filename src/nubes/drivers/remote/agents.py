"""The control plane's end: commands go to the machine they are for, this one or that of an agent; news come back."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from nubes.drivers.local import payload, stayed, wire
from nubes.drivers.local.endings import failure
from nubes.drivers.local.inputs import Inputs
from nubes.drivers.local.peer import Peer
from nubes.drivers.remote import code, messages
from nubes.drivers.remote.carrying import Carrier, Inline, InOrder
from nubes.drivers.remote.fetches import Fetches
from nubes.drivers.remote.line import Connect, Line
from nubes.functions import events as e
from nubes.functions.spec import Code
from nubes.kernel.errors import NubesError, Unavailable, UsageError

if TYPE_CHECKING:
    from nubes.drivers.local.plane import Hands


class Member:
    """A machine with an agent, and the line to it."""

    def __init__(self, machine: int, about: messages.About, line: Line) -> None:
        self.machine = machine
        self.about = about
        self.line = line
        self.functions: dict[int, str] = {}  # of its instances
        self.pids: dict[int, int] = {}  # of its instances, once they are ready
        self.leaving = False
        self.gone = False  # it was told that it may go


class Agents:
    """The hands of a control plane with many machines. `local` are those of its own, if it gives out any of itself."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        feed: Callable[[Any], None],
        frame: Callable[[int, list[Any]], None],
        around: Callable[[str, str], messages.Surroundings | None],
        prime: Callable[[], bool],
        segments: payload.Segments,
        durable: payload.Segments,
        local: Hands | None,
        goes_on: Callable[[int], bool],
        inputs: Inputs,
        carrier: Carrier | None = None,
        connect: Connect = Peer,
        files: Callable[[Code], dict[str, bytes]] = code.files,
        incarnation: int = 0,
    ) -> None:
        self._loop = loop
        self._feed = feed
        self._frame = frame
        self._around = around
        self._prime = prime
        self._segments = segments
        self._durable = durable
        self._in_order = InOrder(loop)
        self._local = local
        self._goes_on = goes_on
        self._carrier = carrier or Inline()
        self._connect = connect
        self._code_of = files
        self.incarnation = incarnation or messages.incarnation()
        self._machines = itertools.count(1)
        self.members: dict[int, Member] = {}  # by machine
        self._where: dict[int, Member] = {}  # by instance
        self._nodes: dict[int, Member] = {}  # by parent in the process tree
        self._fetches = Fetches(loop, self._carrier, segments, inputs, self.members)
        self._given_up: set[int] = set()  # incarnations of agents whose machine is lost: their links are of no use
        self._closed = False
        loop.call_later(messages.BEAT_S, self._look)

    # -- machines ------------------------------------------------------------------------------------------------

    def join(self, raw: bytes, sock: Any) -> None:
        """An agent connects, for the first time or again. Raises `UsageError` if its machine was given up."""
        about = messages.about(raw)
        if about.incarnation in self._given_up:
            raise UsageError("This machine was given up.", "Its agent begins anew.")
        member = next((m for m in self.members.values() if m.about.incarnation == about.incarnation), None)
        if member is None:
            for other in [m for m in self.members.values() if m.about.name == about.name]:
                self.lost(other.machine, "its agent was started anew")
            if about.cpu <= 0 or about.memory_bytes <= 0:
                raise UsageError("The machine has nothing to give.", "Name --cpu and --memory above zero.")
            member = self._new(about)
        make = partial(self._connect, self._loop, sock)
        member.line.connect(make, self._loop.time(), wire.pack(messages.JOINED, member.machine))

    def _new(self, about: messages.About) -> Member:
        machine = next(self._machines)
        line = Line(
            self.incarnation, self._loop.time, lambda message: self._said(machine, message),
            lambda: self.lost(machine, "its agent is another one"), lambda: self._cut(machine),
        )  # fmt: skip
        member = self.members[machine] = Member(machine, about, line)
        self._feed(e.MachineReady(about.cpu, about.memory_bytes, machine, about.zone))
        return member

    def lost(self, machine: int, reason: str) -> None:
        """A machine is gone, and with it everything on it."""
        member = self.members.pop(machine, None)
        if member is None:
            return
        self._given_up.add(member.about.incarnation)
        for table in (self._where, self._nodes):
            for id in [id for id, where in table.items() if where is member]:
                del table[id]
        member.line.close()
        self._fetches.lost(machine)
        self._feed(e.MachineLost(machine, f"machine {member.about.name or machine} is gone: {reason}"))

    def named(self, name: str) -> Member | None:
        return next((m for m in self.members.values() if m.about.name == name), None)

    def close(self) -> None:
        self._closed = True
        for member in self.members.values():
            member.line.close()

    def _look(self) -> None:
        """Gives up who is silent."""
        if self._closed:
            return
        now = self._loop.time()
        for member in list(self.members.values()):
            if now - member.line.heard_s > messages.LOST_S:
                self.lost(member.machine, f"nothing was heard of it for {messages.LOST_S:g} s")
        self._loop.call_later(messages.BEAT_S, self._look)

    def _cut(self, machine: int) -> None:
        if self.members[machine].gone:
            self.lost(machine, "it left")

    def _said(self, machine: int, message: bytes) -> None:
        member = self.members.get(machine)
        if member is not None:
            self._news(member, messages.news(message))

    def _news(self, member: Member, news: Any) -> None:
        if isinstance(news, messages.Said):
            self._frame_of(member, news)
        elif isinstance(news, messages.Fetched):
            self._fetches.came(news)
        elif isinstance(news, messages.Wants):
            self._order(member, self._files(news.function))
        elif isinstance(news, messages.Leaves):
            member.leaving = True
            self._feed(e.MachineDraining(member.machine))
        elif isinstance(news.event, e.InstanceLost):
            event = news.event
            self._in_order.do(event.instance, None, lambda _: self._ended(member, event))
        elif self._nodes.get(news.event.node) is member:
            if isinstance(news.event, e.NodeLost):
                del self._nodes[news.event.node]
            self._feed(news.event)

    def _frame_of(self, member: Member, news: messages.Said) -> None:
        """An instance's frame: large results are put where they can be read here, those that are kept to last."""
        frame, carrier = news.frame, self._carrier
        if frame[0] == wire.READY:
            member.pids[news.instance] = frame[2]
        place = wire.RESULTS.get(frame[0])
        data = frame[place] if place is not None else b""
        begin = None
        if news.stayed_bytes:
            frame[4] = stayed.at(member.machine, news.stayed_bytes, data)
        elif news.keep or carrier.waits(data):
            segments = self._durable if news.keep else self._segments
            begin = self._in_order.work(lambda: payload.landed(carrier.unpack(data, segments), segments))
        self._in_order.do(news.instance, begin, lambda landed: self._arrived(member, news.instance, frame, landed))

    def _arrived(self, member: Member, instance: int, frame: list[Any], landed: bytes | Exception | None) -> None:
        if self._where.get(instance) is not member:
            return
        place = wire.RESULTS.get(frame[0])
        if isinstance(landed, Exception):
            self._lose(member, instance, f"what it answered could not be had: {landed}")
            return
        if place is not None and landed is not None:
            frame[place] = landed
        if frame[0] == wire.DONE:
            frame[6] = True  # it read copies of its arguments
        self._frame(instance, frame)

    def _ended(self, member: Member, event: e.InstanceLost) -> None:
        """After all that it said."""
        member.functions.pop(event.instance, None)
        member.pids.pop(event.instance, None)
        if self._where.get(event.instance) is member:
            del self._where[event.instance]
            self._feed(event)

    def _lose(self, member: Member, instance: int, reason: str) -> None:
        """Gives an instance up whose answer is lost: its calls start over."""
        self._order(member, messages.Do(e.StopInstance(instance, reason, kill=True)))
        del self._where[instance]
        self._feed(e.InstanceLost(instance, reason))

    def _files(self, function: str) -> messages.Files:
        around = self._around(function, "")
        if around is None:
            return messages.Files(function, {}, "the function is gone")
        try:
            return messages.Files(function, self._code_of(around.spec.code))
        except (NubesError, OSError) as error:
            return messages.Files(function, {}, str(error))

    # -- hands ---------------------------------------------------------------------------------------------------

    def start(self, command: e.StartInstance) -> None:
        if not command.machine and self._local is not None:
            self._local.start(command)
            return
        member = self.members.get(command.machine)
        name = command.function[: len(command.function) - len(command.variant)]
        around = self._around(name, "")
        if member is None or around is None:
            gone = e.InstanceLost(command.instance, "its machine is gone")
            self._loop.call_soon(self._feed, gone)
            return
        self._where[command.instance] = member
        member.functions[command.instance] = around.spec.name
        self._order(member, messages.Do(command, around))

    def stop(self, command: e.StopInstance) -> None:
        member = self._where.get(command.instance)
        if member is not None:
            self._order(member, messages.Do(command))
        elif self._local is not None:
            self._local.stop(command)

    def dispatch(self, command: e.Dispatch, keep: bool, inputs: list[bytes]) -> None:
        member = self._where.get(command.instance)
        machine = member.machine if member is not None else 0
        away = any(data[:1] == stayed.MARK and not stayed.is_on(data, machine) for data in inputs)
        begin = (lambda: self._fetches.for_machine(machine, command.calls, inputs)) if away else None
        self._in_order.do(("to", command.instance), begin, lambda found: self._give(command, keep, found or inputs))

    def _give(self, command: e.Dispatch, keep: bool, inputs: Sequence[bytes | None]) -> None:
        """Calls with their inputs; None where one was lost: its call fails, the others run."""
        for call, data in zip(command.calls, inputs, strict=True):
            if data is None:
                lost = failure(Unavailable("What the step before gave was lost with its machine.", "Call it again."))
                self._frame(command.instance, [wire.DONE, call, False, 0.0, lost, "", False])
        pairs = [(call, data) for call, data in zip(command.calls, inputs, strict=True) if data is not None]
        if not pairs:
            return
        if len(pairs) < len(inputs):
            command = msgspec.structs.replace(command, calls=tuple(call for call, _ in pairs))
        self._run(command, keep, [data for _, data in pairs])

    def _run(self, command: e.Dispatch, keep: bool, inputs: list[bytes]) -> None:
        member = self._where.get(command.instance)
        if member is not None:
            packed = [self._carrier.pack(data, member.about.name) for data in inputs]
            stay = () if keep else tuple(filter(self._goes_on, command.calls))
            self._order(member, messages.Run(command, keep, packed, stay))
        elif self._local is not None:
            self._local.dispatch(command, keep, inputs)

    def interrupt(self, command: e.Interrupt) -> None:
        self._in_order.do(("to", command.instance), None, lambda _: self._interrupt(command))

    def _interrupt(self, command: e.Interrupt) -> None:
        member = self._where.get(command.instance)
        if member is not None:
            self._order(member, messages.Do(command))
        elif self._local is not None:
            self._local.interrupt(command)

    def forget(self, data: bytes) -> None:
        self._fetches.forget(data)

    def grow(self, command: e.GrowNode) -> None:
        if not command.machine and self._local is not None:
            self._local.grow(command)
            return
        member = self.members.get(command.machine)
        if member is None:
            self._loop.call_soon(self._feed, e.NodeLost(command.node, "its machine is gone"))
            return
        self._nodes[command.node] = member
        around = self._around(command.function, command.environment)
        self._order(member, messages.Do(command, around, self._prime()))

    def prune(self, command: e.PruneNode) -> None:
        member = self._nodes.pop(command.node, None)
        if member is not None:
            self._order(member, messages.Do(command))
        elif self._local is not None:
            self._local.prune(command)

    def drained(self, command: e.Drained) -> None:
        """A machine that was told to leave may do so, once what stayed there is here."""
        self._fetches.home(command.machine, lambda: self._bye(command.machine))

    def _bye(self, machine: int) -> None:
        member = self.members.get(machine)
        if member is not None and member.leaving:
            self._order(member, messages.Bye())
            member.gone = True

    def function_of(self, instance: int) -> str:
        member = self._where.get(instance)
        if member is not None:
            return member.functions.get(instance, "")
        return self._local.function_of(instance) if self._local is not None else ""

    def _order(self, member: Member, order: Any) -> None:
        member.line.send(messages.encode(order))
