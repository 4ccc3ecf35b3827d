"""The real log, plane and ends of links, telling the oracle what goes through them."""

from __future__ import annotations

import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any

from nubes.drivers.local import wire
from nubes.drivers.local.plane import Plane
from nubes.drivers.remote import messages
from nubes.drivers.remote.agents import Agents, Member
from nubes.drivers.remote.life import Life
from nubes.functions import events as e
from nubes.kernel.log import Log
from nubes.kernel.message import Event

if TYPE_CHECKING:
    from nubes.drivers.sim.faults.oracle import Oracle
    from nubes.drivers.sim.faults.world import World


class WatchedLog(Log):
    """Tells the oracle what was appended."""

    lineage: list[bytes]

    def append(self, body: bytes) -> int:
        number = super().append(body)
        self.lineage.append(body)
        return number


class WatchedPlane(Plane):
    """Tells the oracle what it is fed and what it resolves."""

    world: World
    clients: Counter[int]
    fed = 0

    def lasting(self, output: bytes) -> bytes | None:
        return output if zlib.crc32(output) % 4 else None  # its disk is full, say

    def feed(self, event: Event, at: float = 0.0) -> None:
        record = self.journal.log.count
        oracle = self.world.oracle
        oracle.feeds(event, record)
        if isinstance(event, e.InstanceLost):
            oracle.instance_lost(event.instance, event.reason)
        elif isinstance(event, e.MachineLost) and event.machine:
            oracle.machine_given_up(event.machine, event.reason)
        elif isinstance(event, e.MachineReady) and event.machine:
            oracle.machine_joins()
        self.world.last_record = record
        super().feed(event, at)
        self.fed += 1
        if self.world.tell is not None:
            self.world.note("event", f"{record}: {event}")


class WatchedAgents(Agents):
    """Tells the oracle what it orders and what it hears."""

    oracle: Oracle

    def _order(self, member: Member, order: Any) -> None:
        self.oracle.sent((self.incarnation, member.about.incarnation), messages.encode(order))
        if self.oracle.world.tell is not None:
            self.oracle.world.note(f"order for {member.about.name}:", order)
        super()._order(member, order)

    def _frame_of(self, member: Member, news: messages.Said) -> None:
        if news.frame[0] == wire.DONE and self._where.get(news.instance) is member:
            self.oracle.answer_came(news.instance, news.frame[1])
        super()._frame_of(member, news)

    def _said(self, machine: int, message: bytes) -> None:
        if machine in self.members:
            self.oracle.got((self.members[machine].about.incarnation,), message)
        super()._said(machine, message)


class WatchedLife(Life):
    """The same, of an agent."""

    oracle: Oracle

    def end(self, whole: bool) -> None:
        hands: Any = self.work.site.hands
        if whole and hands.instances:
            self.oracle.say(f"an agent leaves, and instances {sorted(hands.instances)} have not ended yet")
        super().end(whole)

    def _said(self, message: bytes) -> None:
        self.oracle.got((self.line.other, self.incarnation), message)
        super()._said(message)

    def _send(self, news: Any) -> None:
        self.oracle.sent((self.incarnation,), messages.encode(news))
        if self.oracle.world.tell is not None:
            self.oracle.world.note(f"news from life {self.incarnation}:", news)
        super()._send(news)
