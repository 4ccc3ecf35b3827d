"""LLM engines in virtual time: the very scheduler that runs live, with a model of how long its steps take."""

from __future__ import annotations

import gc
from array import array
from bisect import insort
from collections.abc import Callable
from collections.abc import Sequence as Many
from heapq import heappop, heappush
from math import inf, nan
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from nubes.drivers.sim.llm.instance import Instance
from nubes.drivers.sim.llm.requests import followers, keys_of
from nubes.drivers.sim.llm.served import Served
from nubes.llm.scheduling.sequence import DECODE, Sequence
from nubes.llm.scheduling.step import Step
from nubes.llm.seams import Batching

if TYPE_CHECKING:
    from nubes.workloads.llm import LLMWorkload


Route = Callable[[Sequence, Many[Instance], float], int]


def shortest(sequence: Sequence, instances: Many[Instance], now: float) -> int:
    """The instance with the fewest sequences."""
    return min(
        range(len(instances)),
        key=lambda n: len(instances[n].scheduler.state.waiting) + instances[n].scheduler.state.running,
    )


def simulate_llm(
    workload: LLMWorkload,
    instances: Many[Instance],
    *,
    route: Route = shortest,
    until_s: float = inf,
    watch: Callable[[Instance, float], None] | None = None,
) -> Served:
    """Serves `workload` with `instances` and says when each request got its first and its last token.

    Where the workload has think times, the requests of a session come one after the other: each that long after the
    answer before it.
    Requests that an ordering sheds, or that fit no instance, are never served. `watch` is called after every step.
    Ends after `until_s`, or with the last answer.
    """
    run = Run(workload, instances, route, watch)
    return run.served(*timed(run.through, until_s))


def timed(through: Callable[[float], float], until_s: float) -> tuple[float, float]:
    """Runs a simulation: when it ended in virtual time, and the seconds that took for real."""
    begun = perf_counter()
    collecting = gc.isenabled()
    gc.disable()  # what a step drops is not cyclic
    try:
        return through(until_s), perf_counter() - begun
    finally:
        if collecting:
            gc.enable()


class Run:
    """The loop of `simulate_llm`, and what it has measured so far."""

    def __init__(
        self, workload: LLMWorkload, instances: Many[Instance], route: Route,
        watch: Callable[[Instance, float], None] | None,
    ) -> None:  # fmt: skip
        n = len(workload.arrival_s)
        self.workload = workload
        self.instances = instances
        self.route = route
        self.watch = watch
        self.next = followers(workload) if workload.think_s is not None else {}
        later = set(self.next.values())
        # The next one last, so that it is popped.
        self.arrivals = [
            (at_s, at) for at, at_s in reversed(list(enumerate(workload.arrival_s.tolist()))) if at not in later
        ]
        self.arrived_s = np.full(n, nan)
        self.begun_s: dict[int, float] = {}
        self.first_s = np.full(n, nan)
        self.end_s = np.full(n, nan)
        self.instance = np.full(n, -1, np.int32)
        self.cached = np.zeros(n, np.int64)
        self.gaps_s = array("d")
        self.gap_counts = array("q")
        self.lost_s = 0.0  # between giving way and the next token, or the return from host memory
        self.heap: list[tuple[float, int]] = []  # when each busy instance's step ends

    def served(self, now: float, took_s: float) -> Served:
        instances = self.instances
        return Served(
            self.workload,
            self.arrived_s,
            np.array([self.begun_s.get(at, inf) for at in range(len(self.first_s))]),
            self.first_s,
            self.end_s,
            self.instance,
            self.cached,
            np.array(self.gaps_s),
            np.array(self.gap_counts, np.int64),
            sum(i.steps for i in instances),
            sum(i.busy_s for i in instances),
            sum(i.scheduler.preemptions for i in instances),
            now,
            took_s,
        )

    def through(self, until_s: float) -> float:
        """The loop: the next arrival or the next end of a step; at one time arrivals go first."""
        arrivals, heap = self.arrivals, self.heap
        now = 0.0
        idle = set(range(len(self.instances)))
        while True:
            ends = heap[0][0] if heap else inf
            if arrivals and arrivals[-1][0] <= ends:
                arrival = arrivals[-1][0]
                if arrival > until_s:
                    return now
                now = arrival
                woken = set()
                while arrivals and arrivals[-1][0] == arrival:
                    number = self._arrive(arrivals.pop()[1], now)
                    if number in idle:
                        woken.add(number)
                for number in sorted(woken):
                    if self._begin(number, now):
                        idle.discard(number)
                continue
            if ends > until_s or ends == inf:
                return now
            now, number = heappop(heap)
            self._end(self.instances[number], now)
            if not self._begin(number, now):
                idle.add(number)

    def _sequence(self, at: int, now: float) -> Sequence:
        workload = self.workload
        size = self.instances[0].scheduler.state.block_size
        self.arrived_s[at] = now
        return Sequence(
            at,
            int(workload.prompt[at]),
            int(workload.output[at]),
            arrived_s=now,
            keys=keys_of(workload, at, size),
            priority=int(workload.priority[at]) if workload.priority is not None else 0,
            session=str(workload.session[at]) if workload.session is not None else "",
            adapter=str(workload.adapter[at]) if workload.adapter is not None else "",
        )

    def _arrive(self, at: int, now: float) -> int:
        sequence = self._sequence(at, now)
        number = self.route(sequence, self.instances, now) if len(self.instances) > 1 else 0
        scheduler = self.instances[number].scheduler
        if scheduler.fits(sequence):
            scheduler.arrive(sequence, now)
            self.instance[at] = number
        else:
            self.follow(at, now)
        return number

    def follow(self, at: int, now: float) -> None:
        """The next request of a session is sent a while after the answer."""
        follower = self.next.get(at)
        if follower is not None:
            assert self.workload.think_s is not None
            insort(self.arrivals, (now + float(self.workload.think_s[follower]), follower), key=lambda entry: -entry[0])

    def _begin(self, number: int, now: float) -> bool:
        instance = self.instances[number]
        step = instance.scheduler.compose(now)
        if step is None:
            return False
        instance.step = step
        load = step.load
        begun = now if instance.overlap else now + load.moved * instance.block_s
        if instance.guessing is not None:
            begun += instance.guessing.add(instance.scheduler, step)
        at = begun
        if load.prefill_rows or load.decodes:
            scheduler = instance.scheduler
            plain = type(scheduler.batching).passes is Batching.passes
            for each in (load,) if plain else scheduler.batching.passes(step, scheduler.state):
                took = instance.model.seconds(each)
                instance.busy_s += took
                at = at + took if instance.stages is None else instance.stages.run(begun, took)
        at = max(at, now + load.filled * instance.block_s)  # adapters come while the step runs
        for chunk in step.chunks:
            self.begun_s.setdefault(chunk.sequence.id, now)
        for sequence in step.resumed:
            self.lost_s += now - sequence.paused_s
            self.expect(instance, sequence)
            instance.fresh.append((sequence.paused_s, sequence))
        if instance.overlap and load.moved:
            at = max(at, now + max(len(step.loads), len(step.saves)) * instance.block_s)
        instance.steps += 1
        instance.busy_s += begun - now
        instance.scheduler.speculation.ran(load, at - now)
        heappush(self.heap, (at, number))
        return True

    def expect(self, instance: Instance, sequence: Sequence) -> None:
        """A sequence decodes from now on: writes down in which step it will end."""
        tick = instance.scheduler.state.tick + sequence.foreseen - sequence.generated
        expected = instance.ends.get(tick)
        if expected is None:
            instance.ends[tick] = [sequence]
        else:
            expected.append(sequence)

    def _end(self, instance: Instance, now: float) -> list[Sequence]:
        """A step is done. Those that got their last token in it."""
        step, scheduler = instance.step, instance.scheduler
        assert step is not None
        state = scheduler.state
        ended: list[Sequence] = []
        if step.decodes:
            for sequence in instance.ends.pop(state.tick + 1, ()):
                if sequence.state == DECODE and sequence.generated + 1 == sequence.foreseen and sequence not in ended:
                    ended.append(sequence)
            others = step.load.decodes - step.load.guesses
            for token_s, sequence in instance.fresh:
                if sequence.state == DECODE:
                    others -= 1
                    self.gaps_s.append(now - token_s)
                    self.gap_counts.append(1)
            if others:
                self.gaps_s.append(now - instance.decoded_s)
                self.gap_counts.append(others)
            instance.fresh = []
            instance.decoded_s = now
        for sequence in scheduler.complete(step, now):
            if sequence.first_s == now:
                self.first_s[sequence.id] = now
                self.cached[sequence.id] = sequence.cached
            else:  # it had given way
                self.lost_s += now - sequence.paused_s
                self.gaps_s.append(now - sequence.paused_s)
                self.gap_counts.append(1)
            if sequence.generated >= sequence.foreseen:
                ended.append(sequence)
            else:
                self.expect(instance, sequence)
                instance.fresh.append((now, sequence))
        if instance.guessing is not None:
            ended += self._verify(instance, step)
        for sequence in ended:
            scheduler.finish(sequence, now)
            self.end_s[sequence.id] = now
            if self.next:
                self.follow(sequence.id, now)
        instance.step = None
        if self.watch is not None:
            self.watch(instance, now)
        return ended

    def _verify(self, instance: Instance, step: Step) -> list[Sequence]:
        """Guesses that held are tokens that came at once. Those that got their last one so."""
        assert instance.guessing is not None
        ended = []
        for sequence, tokens in instance.guessing.verify(instance.scheduler, step):
            if tokens and sequence.state == DECODE:
                self.gaps_s.append(0.0)
                self.gap_counts.append(tokens)
                if sequence.generated >= sequence.foreseen:
                    ended.append(sequence)
                else:
                    self.expect(instance, sequence)
        return ended
