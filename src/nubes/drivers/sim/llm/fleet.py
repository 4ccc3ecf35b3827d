"""Fleets of LLM engines in virtual time: the controller that runs live, engines as in `simulate_llm`, and links."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf, nan
from typing import TYPE_CHECKING, Any

import numpy as np

from nubes.drivers.sim.llm.commands import COMMANDS
from nubes.drivers.sim.llm.engine import Run, timed
from nubes.drivers.sim.llm.instance import Instance
from nubes.drivers.sim.llm.served import Served
from nubes.llm.cluster import events as e
from nubes.llm.cluster.fleet import Fleet
from nubes.llm.cluster.member import Role, report
from nubes.llm.cluster.seams import Ask
from nubes.llm.scheduling import moving
from nubes.llm.scheduling.sequence import DECODE, Sequence

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nubes.workloads.llm import LLMWorkload

DEFAULT_LINK = 8e9  # bytes/s between engines: 64 Gbit/s
LATENCY_S = 1e-3  # of a transfer, whatever its size


@dataclass(frozen=True, eq=False)
class FleetServed:
    """What became of the requests, and of the fleet.

    `down_s`: for each sequence that moved live or by copy, from its stop to its landing. `lost_s`: all time between
    giving way for memory and the next token. `engine_s`: engine-seconds, from start to stop.
    """

    served: Served
    down_s: NDArray[np.float64]
    lost_s: float
    engine_s: float
    moved: int
    aborted: int
    most: int  # engines at a time
    refused: int
    lost: tuple[int, ...] = ()  # engines that died


@dataclass(slots=True)
class Hardware:
    """What engines are made of. `start_s`: until a new one serves. `dies_s`: when which engine is
    lost; `leaves_s`: when nobody wants which request any more.
    """

    make: Callable[[int], Instance]
    roles: tuple[Role, ...] = ("both",)
    link: float = DEFAULT_LINK
    latency_s: float = LATENCY_S
    start_s: float = 20.0
    dies_s: tuple[tuple[float, int], ...] = ()
    leaves_s: tuple[tuple[float, int], ...] = ()
    watch: Callable[[Instance, float], None] | None = None


def simulate_fleet(workload: LLMWorkload, fleet: Fleet, hardware: Hardware, *, until_s: float = inf) -> FleetServed:
    """Serves `workload` with a fleet that begins with an engine for each of `hardware.roles`."""
    run = FleetRun(workload, fleet, hardware)
    return run.fleet_served(*timed(run.through, until_s))


@dataclass(slots=True)
class Place:
    """Where a request is: its sequence, and on which engine."""

    sequence: Sequence
    number: int
    opened: int = -1  # preemptions when its handover began
    token_s: float = 0.0  # its last token, if it is stopped
    stopped_s: float = 0.0


class FleetRun(Run):
    def __init__(self, workload: LLMWorkload, fleet: Fleet, hardware: Hardware) -> None:
        super().__init__(workload, [], lambda *_: 0, hardware.watch)
        self.fleet = fleet
        self.hardware = hardware
        self.instances: list[Instance] = []
        self.roles: list[Role] = []
        self.started_s: list[float] = []
        self.stopped_s: list[float] = []
        self.places: dict[int, Place] = {}
        self.idle: set[int] = set()
        self.late: dict[int, list[e.Command]] = {}  # engine -> what waits for the end of its step
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.count = 0
        self.down_s: list[float] = []
        self.dead: set[int] = set()
        self.refused = 0
        self.most = 0
        self.size = 16
        self.ahead: dict[int, tuple[int, int, Sequence]] = {}  # what is computed ahead: turn, tokens, as what
        n = workload.requests
        self.first_s, self.cached = np.full(2 * n, nan), np.zeros(2 * n, np.int64)  # of these too
        self.end_s = np.full(2 * n, nan)
        for role in hardware.roles:
            self.join(role, 0.0)
        for at_s, number in hardware.dies_s:
            self.schedule(at_s, self._die, number)
        for at_s, id in hardware.leaves_s:
            self.schedule(at_s, self._leave, id)
        if fleet.period_s:
            self.schedule(fleet.period_s, self._tick)

    # -- the loop -------------------------------------------------------------------------------------------------

    def schedule(self, when_s: float, call: Callable[..., None], *arguments: Any) -> None:
        self.count += 1
        heappush(self.events, (when_s, self.count, call, arguments))

    def through(self, until_s: float) -> float:
        arrivals, heap, events = self.arrivals, self.heap, self.events
        now = 0.0
        while True:
            arrives = arrivals[-1][0] if arrivals else inf
            ends = heap[0][0] if heap else inf
            happens = events[0][0] if events else inf
            if not arrivals and not heap and not self.places:
                return now
            when = min(arrives, ends, happens)
            if when > until_s or when == inf:
                return now
            now = when
            if arrives == now:
                self._arrives(arrivals.pop()[1], now)
            elif happens == now:
                _, _, call, arguments = heappop(events)
                call(*arguments, now)
            else:
                number = heappop(heap)[1]
                if number not in self.dead:
                    self._ends(number, now)

    def _ends(self, number: int, now: float) -> None:
        instance = self.instances[number]
        ended = self._end(instance, now)
        for sequence in ended:
            if sequence.id >= self.workload.requests:
                self._warmed(sequence.id, now)
                continue
            del self.places[sequence.id]
            self.tell(e.Ended(sequence.id, number), now)
        if self.roles[number] == "prefill":
            self._hand_on(number, instance, now)
        for command in self.late.pop(number, ()):
            self._do(command, now)
        self._go(number, now)

    def _go(self, number: int, now: float) -> None:
        if self._begin(number, now):
            self.idle.discard(number)
        else:
            self.idle.add(number)

    def wake(self, number: int, now: float) -> None:
        if number in self.idle:
            self._go(number, now)

    def _hand_on(self, number: int, instance: Instance, now: float) -> None:
        """Those whose prompts are done stop here."""
        fresh, instance.fresh = instance.fresh, []
        for token_s, sequence in fresh:
            if sequence.state != DECODE:
                continue
            moving.depart(instance.scheduler, sequence)
            place = self.places[sequence.id]
            place.token_s = sequence.paused_s = token_s
            place.stopped_s = now
            self.tell(e.Prefilled(sequence.id, number, len(sequence.blocks), sequence.known), now)

    def _tick(self, now: float) -> None:
        self._refresh(now, sequences=True)
        self.tell(e.Ticked(), now)
        self.schedule(now + self.fleet.period_s, self._tick)

    def _refresh(self, now: float, sequences: bool = False) -> None:
        for number, member in self.fleet.members.items():
            member.report = report(self.instances[number].scheduler.state, sequences)

    # -- requests -------------------------------------------------------------------------------------------------

    def _arrives(self, at: int, now: float) -> None:
        sequence = self._sequence(at, now)
        fits = any(self.instances[n].scheduler.fits(sequence) for n in self.fleet.members)
        if not fits:
            self.refused += 1
            self.follow(at, now)
            return
        self.places[at] = Place(sequence, -1)
        self._refresh(now)
        ask = Ask(
            at, sequence.prompt, sequence.prompt, sequence.limit, sequence.priority, adapter=sequence.adapter,
            work=sequence.work,
        )  # fmt: skip
        self.tell(e.Asked(ask), now)

    def _leave(self, id: int, now: float) -> None:
        if id in self.places:
            if self.places[id].number < 0:
                del self.places[id]
            self.tell(e.Cancelled(id), now)

    def served(self, now: float, took_s: float) -> Served:
        n = self.workload.requests
        self.first_s, self.end_s, self.cached = self.first_s[:n], self.end_s[:n], self.cached[:n]
        return super().served(now, took_s)

    def fleet_served(self, now: float, took_s: float) -> FleetServed:
        fleet = self.fleet
        ended = [now if stop == inf else stop for stop in self.stopped_s]
        return FleetServed(
            self.served(now, took_s), np.array(self.down_s), self.lost_s,
            sum(stop - start for start, stop in zip(self.started_s, ended, strict=True)), fleet.moved, fleet.aborted,
            self.most, self.refused, tuple(self.dead),
        )  # fmt: skip

    def tell(self, event: e.Event, now: float) -> None:
        for command in self.fleet.handle(event, now):
            self._do(command, now)

    # -- engines --------------------------------------------------------------------------------------------------

    def join(self, role: Role, now: float, begun_s: float | None = None) -> None:
        number = len(self.instances)
        instance = self.hardware.make(number)
        self.size = instance.scheduler.state.block_size
        self.instances.append(instance)
        self.roles.append(role)
        self.started_s.append(now if begun_s is None else begun_s)
        self.stopped_s.append(inf)
        self.idle.add(number)
        self.tell(e.Joined(number, report(instance.scheduler.state), role), now)
        self.most = max(self.most, len(self.fleet.members))

    def _die(self, number: int, now: float) -> None:
        if number >= len(self.instances) or self.stopped_s[number] < inf:
            return
        self.stopped_s[number] = now
        self.dead.add(number)
        self.idle.discard(number)
        self.late.pop(number, None)
        known = {}
        for id, place in self.places.items():
            if place.number == number:
                sequence = place.sequence
                if sequence.state == DECODE:
                    sequence.paused_s = max(self.instances[number].decoded_s, sequence.first_s)
                place.sequence = sequence.again()
                known[id] = place.sequence.known
        self.tell(e.Lost(number, known), now)

    # -- commands -------------------------------------------------------------------------------------------------

    def _do(self, command: e.Command, now: float) -> None:
        """At once, or when the engine's step has ended."""
        number = getattr(command, "number", -1)
        if isinstance(command, e.Land | e.Warm):
            number = command.target
        if number in self.dead:
            return
        if number >= 0 and self.instances[number].step is not None and not isinstance(command, e.Dispatch):
            self.late.setdefault(number, []).append(command)
            return
        COMMANDS[type(command)](self, command, now)

    def _warmed(self, id: int, now: float) -> None:
        turn, tokens, _ = self.ahead.pop(id)
        self.tell(e.Warmed(id - self.workload.requests, turn, tokens), now)
