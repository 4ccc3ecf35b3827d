"""Which engine has which request, and who waits for one: the state of a fleet, and how requests come and go in it."""

from __future__ import annotations

from collections import deque
from typing import cast

from nubes.kernel.policy import make
from nubes.llm.cluster import events as e
from nubes.llm.cluster.handover import Handover
from nubes.llm.cluster.member import Member
from nubes.llm.cluster.seams import Ask, Migration, Routing, Scaling

GONE = "The model's engine is gone and there is no other. Send the request again when one has started."


class Dispatcher:
    """A request is in one place: in `queue` until an engine gets it, then with the engine `where` says. While it moves
    that is the source, until the target has it.
    """

    def __init__(
        self,
        *,
        routing: str | Routing | None = None,
        migration: str | Migration | None = None,
        scaling: str | Scaling | None = None,
        renews: bool = False,
    ) -> None:
        self.routing = cast(Routing, make("routing", routing))
        self.migration = cast(Migration, make("migration", migration))
        self.scaling = cast(Scaling, make("scaling", scaling))
        self.renews = renews  # an engine that is lost is started again
        self.members: dict[int, Member] = {}
        self.asks: dict[int, Ask] = {}
        self.where: dict[int, int] = {}
        self.queue: deque[int] = deque()
        self.handovers: dict[int, Handover] = {}
        self.waiting: dict[int, deque[int]] = {}  # target -> handovers that wait for room there
        self.starting = 0  # engines on their way
        self.started = 0
        self.turns = 0  # handovers that began
        self.moved = 0  # and those that came to an end
        self.aborted = 0
        self._moves_s = 0.0  # when migration and scaling are asked next
        self._scales_s = 0.0
        self._out: list[e.Command] = []

    def _route(self, now: float) -> None:
        """Gives those that wait here, the first first, to engines."""
        if not self.queue:
            return
        if not self.starting and all(m.role == "decode" for m in self.members.values()):
            for id in self.queue:
                del self.asks[id]
                self._out.append(e.Refuse(id, GONE))
            self.queue.clear()
            return
        able = [m for m in self.members.values() if not m.draining and m.role != "decode"]
        if self.routing.passes:
            for ask in self.routing.line([self.asks[id] for id in self.queue], able, now) if able else ():
                chosen = self.routing.choose(ask, able, now)
                if chosen is not None:
                    self.queue.remove(ask.id)
                    self._place(ask.id, chosen)
            return
        while self.queue and able:
            ask = self.asks[self.queue[0]]
            member = self.routing.choose(ask, able, now)
            if member is None:
                return
            self._place(self.queue.popleft(), member)

    def _place(self, id: int, member: Member) -> None:
        ask, said = self.asks[id], member.report
        self.where[id] = member.number
        member.requests.add(id)
        blocks = -(-ask.known // said.block_size)  # until it reports again
        said.waiting += 1
        said.queued_blocks += blocks
        said.tokens += ask.known
        self._out.append(e.Dispatch(id, member.number))

    def _leave(self, id: int, now: float) -> None:
        """A request has left its engine: there may be room for others, or nothing to keep the engine for."""
        number = self.where.pop(id)
        member = self.members.get(number)
        if member is None:
            return
        member.requests.discard(id)
        member.report.sequences = [running for running in member.report.sequences if running.id != id]
        self._room(number, now)
        self._route(now)
        self._stop(member)

    def _room(self, number: int, now: float) -> None:
        """The first that waits to come to this engine asks again."""
        line = self.waiting.get(number)
        if line:
            handover = self.handovers[line[0]]
            if handover.waits:
                self._out += handover.again()

    def _stop(self, member: Member) -> None:
        if member.draining and not member.requests and not member.receiving:
            del self.members[member.number]
            self._out.append(e.Stop(member.number))
