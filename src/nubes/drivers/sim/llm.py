"""LLM engines in virtual time: the very scheduler that runs live, with a model of how long its steps take."""

from __future__ import annotations

import gc
from array import array
from bisect import insort
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf, nan
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from nubes.drivers.sim.guessing import Guessing
from nubes.drivers.sim.stages import Stages
from nubes.llm.scheduling.load import StepModel
from nubes.llm.scheduling.scheduler import Scheduler
from nubes.llm.scheduling.sequence import DECODE, Sequence
from nubes.llm.scheduling.step import Step
from nubes.llm.seams import Batching

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nubes.workloads.llm import LLMWorkload


@dataclass(slots=True)
class Instance:
    """A scheduler and the hardware under it. `block_s`: seconds to move a block to host memory, or back.

    With `overlap` blocks move beside the computation, layer by layer and both ways at once, and a step takes as long as
    the slowest of the three; otherwise the computation waits for them.
    `stages`: the pipeline its steps pass through, where there is one; `pipelined` makes the instances that share it.
    """

    scheduler: Scheduler
    model: StepModel
    block_s: float = 0.0
    overlap: bool = False
    stages: Stages | None = None
    guessing: Guessing | None = None  # how guesses fare, where the scheduler's speculation makes any
    step: Step | None = None
    ends: dict[int, list[Sequence]] = field(default_factory=dict)  # decode step -> who gets its last token in it
    fresh: list[tuple[float, Sequence]] = field(default_factory=list)  # who joined the decodes since their last step
    decoded_s: float = 0.0  # when the last decode step ended
    steps: int = 0
    busy_s: float = 0.0
    rows: int = 0


@dataclass(frozen=True, eq=False)
class Served:
    """What became of n requests, in columns; times are seconds since the beginning, nan: never.

    `arrived_s` is the workload's own, but where a request waited for the answer before it in its session.
    `gaps_s` and `gap_counts`: times between tokens of one answer, and how many there were of each.
    """

    workload: LLMWorkload
    arrived_s: NDArray[np.float64]
    begun_s: NDArray[np.float64]  # when the first of its prompt was computed; inf: never
    first_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    instance: NDArray[np.int32]
    cached: NDArray[np.int64]  # prompt tokens that were not computed
    gaps_s: NDArray[np.float64]
    gap_counts: NDArray[np.int64]
    steps: int
    busy_s: float  # of all instances together
    preemptions: int
    seconds: float  # simulated
    took_s: float  # for real

    @property
    def ttft_s(self) -> NDArray[np.float64]:
        return np.asarray(self.first_s - self.arrived_s)

    @property
    def tpot_s(self) -> NDArray[np.float64]:
        """Mean time between tokens of each answer of two tokens or more."""
        several = self.workload.output > 1
        return np.asarray((self.end_s - self.first_s)[several] / (self.workload.output[several] - 1))

    @property
    def latency_s(self) -> NDArray[np.float64]:
        return np.asarray(self.end_s - self.arrived_s)


def pipelined(model: StepModel, make: Callable[[], Scheduler]) -> list[Instance]:
    """One instance for each step that the model's stages can have under way; they share the stages, not the memory."""
    stages = Stages(model.stages)
    return [Instance(make(), model, stages=stages) for _ in range(model.stages)]


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
    begun = perf_counter()
    collecting = gc.isenabled()
    gc.disable()  # what a step drops is not cyclic
    try:
        run = Run(workload, instances, route, watch)
        now = run.through(until_s)
    finally:
        if collecting:
            gc.enable()
    return run.served(now, perf_counter() - begun)


def keys_of(workload: LLMWorkload, at: int, block_size: int) -> list[object]:
    """What the full blocks of a request hold, where the workload tells: by its own ids, or by session.

    An id of the workload stands for `block_tokens` tokens and all before them, so for several of our blocks.
    """
    if workload.blocks is not None:
        per = workload.block_tokens // block_size
        keys: list[object] = [id * per + nth for id in workload.blocks[at] for nth in range(per)]
        return keys if workload.whole_blocks else keys[: int(workload.prompt[at]) // block_size]
    if workload.session is not None:
        session = int(workload.session[at])
        return [(session, nth) for nth in range(int(workload.prompt[at] + workload.output[at]) // block_size)]
    return []


def followers(workload: LLMWorkload) -> dict[int, int]:
    """Request -> the one after it in its session."""
    assert workload.session is not None
    last: dict[int, int] = {}
    after = {}
    for at, session in enumerate(workload.session.tolist()):
        if session in last:
            after[last[session]] = at
        last[session] = at
    return after


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
            self._follow(at, now)
        return number

    def _follow(self, at: int, now: float) -> None:
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
            self._expect(instance, sequence)
            instance.fresh.append((sequence.paused_s, sequence))
        if instance.overlap and load.moved:
            at = max(at, now + max(len(step.loads), len(step.saves)) * instance.block_s)
        instance.steps += 1
        instance.busy_s += begun - now
        instance.scheduler.speculation.ran(load, at - now)
        heappush(self.heap, (at, number))
        return True

    def _expect(self, instance: Instance, sequence: Sequence) -> None:
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
                self._expect(instance, sequence)
                instance.fresh.append((now, sequence))
        if instance.guessing is not None:
            ended += self._verify(instance, step)
        for sequence in ended:
            scheduler.finish(sequence, now)
            self.end_s[sequence.id] = now
            if self.next:
                self._follow(sequence.id, now)
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
                    self._expect(instance, sequence)
        return ended
