"""The controller of a fleet of engines: requests in, commands out. Policies make all choices; drivers do the rest."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from nubes.llm.cluster import events as e
from nubes.llm.cluster.dispatching import Dispatcher
from nubes.llm.cluster.handover import Handover
from nubes.llm.cluster.member import Member, Role

LOSSES = 3  # engines that one request may lose before it is taken for the reason
LOST_OFTEN = f"The engine was lost {LOSSES} times with this request on it. It is not tried again."


class Fleet(Dispatcher):
    """Sans-I/O. Feed it the events of `nubes.llm.cluster.events`; it returns commands."""

    @property
    def period_s(self) -> float:
        """How often it wants to be ticked; 0: never."""
        return min((p for p in (self.migration.period_s, self.scaling.period_s) if p), default=0.0)

    def handle(self, event: e.Event, now: float) -> list[e.Command]:
        self._out = []
        HANDLERS[type(event)](self, event, now)
        return self._out

    # -- requests -------------------------------------------------------------------------------------------------

    def _asked(self, event: e.Asked, now: float) -> None:
        ask = event.ask
        self.asks[ask.id] = ask
        self.queue.append(ask.id)
        self._route(now)

    def _cancelled(self, event: e.Cancelled, now: float) -> None:
        id = event.id
        if id not in self.asks:
            return
        del self.asks[id]
        if id in self.where:
            self._out.append(e.Cancel(id, self.where[id]))
            handover = self.handovers.get(id)
            if handover is not None:
                if handover.landing:
                    self._out.append(e.Cancel(id, handover.target))
                handover.stopped = False  # nothing stays: it is cancelled
                self._over(handover, handover.abort(), now)
            self._leave(id, now)
        else:
            self.queue.remove(id)

    def _ended(self, event: e.Ended, now: float) -> None:
        id = event.id
        if self.where.get(id) != event.number:
            return  # it has moved on, or was cancelled meanwhile
        handover = self.handovers.get(id)
        if handover is not None:
            self._over(handover, handover.abort(), now)
        del self.asks[id]
        self._leave(id, now)

    # -- engines --------------------------------------------------------------------------------------------------

    def _joined(self, event: e.Joined, now: float) -> None:
        self.starting = max(0, self.starting - 1)
        self.members[event.number] = Member(event.number, event.role, event.report)
        self.waiting[event.number] = deque()
        self._route(now)

    def _failed(self, event: e.Failed, now: float) -> None:
        self.starting = max(0, self.starting - 1)
        self._route(now)

    def _start(self, role: Role = "both") -> None:
        self.starting += 1
        self.started += 1
        self._out.append(e.Start(self.started, role))

    def _reported(self, event: e.Reported, now: float) -> None:
        member = self.members.get(event.number)
        if member is not None:
            member.report = event.report
            self._room(event.number, now)
            self._route(now)

    def _lost(self, event: e.Lost, now: float) -> None:
        """Its requests begin anew elsewhere, with the tokens they have; what was on its way there stays where it is.

        One that was there each time an engine was lost ends: it may be what kills them.
        """
        member = self.members.pop(event.number, None)
        if member is None:
            return
        for handover in [h for h in self.handovers.values() if event.number in (h.source, h.target)]:
            if handover.landing and handover.source == event.number:
                continue  # the target has everything: it will say that it landed
            alive = handover.source in self.members
            again = alive and handover.fetched
            if again:
                handover.stopped = False  # it stays stopped, for the next target
            self._over(handover, handover.abort(source=alive, target=handover.target in self.members), now)
            if again:
                self._fetch(handover.id, handover.source, handover.goal, now)
        self.waiting.pop(event.number, None)
        for id in [id for id, n in self.where.items() if n not in self.members and id not in self.handovers]:
            del self.where[id]
            ask = self.asks[id]
            ask.known = max(ask.known, event.known.get(id, 0))
            ask.losses += 1
            if self.renews and ask.losses == LOSSES:
                del self.asks[id]
                self._out.append(e.Refuse(id, LOST_OFTEN))
            else:
                self.queue.append(id)
        if self.renews and not member.draining:
            self._start(member.role)
        self.queue = deque(sorted(self.queue))  # ids rise: those that came first are first again
        self._route(now)

    def _ticked(self, event: e.Ticked, now: float) -> None:
        if self.migration.period_s and now >= self._moves_s:
            self._moves_s = now + self.migration.period_s
            members = [m for m in self.members.values() if m.role == "both"]
            for move in self.migration.moves(members, now):
                if self.where.get(move.id) == move.source and move.id not in self.handovers:
                    self._begin(Handover(
                        move.id, move.source, move.target, move.way, last_blocks=self.migration.last_blocks,
                        stages=self.migration.stages, gap=self.migration.gap, turn=self._turn(),
                    ))  # fmt: skip
        if self.scaling.period_s and now >= self._scales_s:
            self._scales_s = now + self.scaling.period_s
            able = [m for m in self.members.values() if not m.draining]
            change = self.scaling.change(able, self.starting, now)
            if change > 0:
                self._start()
            elif change < 0 and len(able) > 1:
                spare = self.scaling.spare(able)
                spare.draining = True
                self._stop(spare)

    # -- sequences that move --------------------------------------------------------------------------------------

    def _prefilled(self, event: e.Prefilled, now: float) -> None:
        if self.where.get(event.id) == event.number:
            self._fetch(event.id, event.number, event.blocks, now)

    def _fetch(self, id: int, source: int, blocks: int, now: float) -> None:
        """A sequence whose prompt is done looks for an engine to decode it; without one it stays where it is."""
        decoders = [
            m for m in self.members.values() if m.role == "decode" and not m.draining and blocks < m.report.blocks
        ]
        if not decoders:
            self._out.append(e.Stay(id, 0, source))
            return
        target = self.routing.decoder(self.asks[id], decoders, now)
        line = self.waiting[target.number]
        self._begin(Handover(id, source, target.number, turn=self._turn(), fetched=blocks), behind=bool(line))
        line.append(id)

    def _turn(self) -> int:
        self.turns += 1
        return self.turns

    def _begin(self, handover: Handover, behind: bool = False) -> None:
        """`behind`: others wait for room there already."""
        self.handovers[handover.id] = handover
        self.members[handover.source].sending += 1
        self.members[handover.target].receiving += 1
        if behind:
            handover.waits = True
        else:
            self._out += handover.begin()

    def _answered(self, event: Any, now: float) -> None:
        handover = self.handovers.get(event.id)
        if handover is None or handover.turn != event.turn:
            return
        if isinstance(event, e.Departed) and event.known > 0:
            self.asks[event.id].known = event.known
        reserved = handover.reserved
        commands = handover.on(event)
        if handover.fetched and handover.reserved > reserved:  # it has its room: the next in line asks
            self.waiting[handover.target].popleft()
            self._room(handover.target, now)
        if handover.outcome:
            self._over(handover, commands, now)
        else:
            self._out += commands

    def _over(self, handover: Handover, commands: list[e.Command], now: float) -> None:
        id, source, target = handover.id, self.members.get(handover.source), self.members.get(handover.target)
        del self.handovers[id]
        line = self.waiting.get(handover.target)
        if line is not None and id in line:
            line.remove(id)
            self._room(handover.target, now)
        if source is not None:
            source.sending -= 1
        if target is not None:
            target.receiving -= 1
        self._out += [command for command in commands if source is not None or not isinstance(command, e.Release)]
        if handover.outcome == "aborted":
            self.aborted += 1
        else:
            self.moved += 1
            assert target is not None
            self._leave(id, now)
            self.where[id] = handover.target
            target.requests.add(id)
        if target is not None:
            self._stop(target)


HANDLERS: dict[type[e.Event], Callable[[Fleet, Any, float], None]] = {
    e.Asked: Fleet._asked,
    e.Cancelled: Fleet._cancelled,
    e.Ended: Fleet._ended,
    e.Joined: Fleet._joined,
    e.Failed: Fleet._failed,
    e.Lost: Fleet._lost,
    e.Reported: Fleet._reported,
    e.Ticked: Fleet._ticked,
    e.Prefilled: Fleet._prefilled,
    **dict.fromkeys((e.Filled, e.Reserved, e.Copied, e.Departed, e.Landed, e.Warmed), Fleet._answered),
}
