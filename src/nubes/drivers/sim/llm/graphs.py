"""Programs of several calls in virtual time: the manager of graphs that runs live, on a fleet of simulated engines."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence as Many
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

import numpy as np

from nubes.drivers.sim.llm.engine import timed
from nubes.drivers.sim.llm.fleet import FleetRun, FleetServed, Hardware
from nubes.llm.cluster.fleet import Fleet
from nubes.llm.graphs.manager import Manager, Task
from nubes.llm.graphs.spec import Plan
from nubes.llm.scheduling.sequence import Sequence
from nubes.llm.spec import Work
from nubes.workloads.llm import LLMWorkload

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Program:
    """A graph with lengths for texts. `sizes`: (prompt, output) tokens of each chain, by its number.

    `blocks`: ids of each prompt's blocks of 16 tokens, where an id stands for all up to it; without them nothing is
    shared. `tenant` is for whoever counts.
    """

    arrived_s: float
    plan: Plan
    sizes: tuple[tuple[int, int], ...]
    blocks: tuple[tuple[int, ...], ...] = ()
    tenant: str = ""


@dataclass(frozen=True, eq=False)
class GraphsServed:
    """What became of programs. `fleet.served` has a row for each chain: `program` and `chain` say which."""

    programs: Many[Program]
    end_s: NDArray[np.float64]  # of each program, nan: never
    program: NDArray[np.int64]
    chain: NDArray[np.int64]
    fleet: FleetServed

    def took_s(self, tenant: str) -> NDArray[np.float64]:
        """From the arrival of each of its programs to the last value that was waited for."""
        return np.array(
            [self.end_s[at] - of.arrived_s for at, of in enumerate(self.programs) if of.tenant == tenant], np.float64
        )

    def tpot_s(self, tenant: str) -> NDArray[np.float64]:
        """Mean time between tokens of each of its answers of two tokens or more."""
        served = self.fleet.served
        tenants = np.array([of.tenant for of in self.programs])[self.program]
        rows = (served.workload.output > 1) & (tenants == tenant)
        return np.asarray((served.end_s - served.first_s)[rows] / (served.workload.output[rows] - 1))


def simulate_graphs(
    programs: Many[Program], fleet: Fleet, hardware: Hardware, *, rtt_s: float = 0.0, labels: bool = True,
    deduces: bool = True, until_s: float = inf,
) -> GraphsServed:  # fmt: skip
    """Serves programs with a fleet.

    `rtt_s`: what passes between an answer and the call that needs it, where a client makes them. `labels=False`: the
    engines know nothing of programs; `deduces=False`: nor of what their calls are wanted for.
    """
    order = sorted(range(len(programs)), key=lambda at: programs[at].arrived_s)
    programs = [programs[at] for at in order]
    run = _GraphRun(programs, fleet, hardware, rtt_s, labels, deduces)
    served = run.fleet_served(*timed(run.through, until_s))
    return GraphsServed(programs, run.program_end_s, np.array(run.program), np.array(run.chain), served)


class _GraphRun(FleetRun):
    def __init__(
        self, programs: Many[Program], fleet: Fleet, hardware: Hardware, rtt_s: float, labels: bool, deduces: bool
    ) -> None:
        self.program = [at for at, of in enumerate(programs) for _ in of.plan.chains]
        self.chain = [chain.number for of in programs for chain in of.plan.chains]
        super().__init__(_rows(programs, self.program, self.chain), fleet, hardware)
        self.programs = programs
        self.rtt_s = rtt_s
        self.labels = labels
        self.first = np.searchsorted(self.program, np.arange(len(programs))).tolist()
        self.managers = [Manager(str(at), of.plan, of.arrived_s, deduces=deduces) for at, of in enumerate(programs)]
        self.work: dict[int, Work] = {}
        self.program_end_s = np.full(len(programs), np.nan)
        self.next = {-1: -1}  # there are followers: `_follow` says which
        self.arrivals = []
        for at, manager in enumerate(self.managers):
            self._send(at, manager.ready(), programs[at].arrived_s)

    def _send(self, at: int, tasks: Many[Task], when_s: float) -> None:
        of = self.programs[at]
        for task in tasks:
            row = self.first[at] + task.chain.number
            prompt, _ = of.sizes[task.chain.number]
            prefixes = _prefixes(of, task.chain.number, prompt)
            if self.labels:
                work = task.work
                self.work[row] = Work(
                    app=work.app, begun_s=work.begun_s, criterion=work.criterion, depth=work.depth, group=work.group,
                    prefixes=prefixes,
                )  # fmt: skip
            insort(self.arrivals, (when_s, row), key=lambda entry: -entry[0])

    def _sequence(self, at: int, now: float) -> Sequence:
        sequence = super()._sequence(at, now)
        sequence.work = self.work.get(at)
        return sequence

    def follow(self, at: int, now: float) -> None:
        number = self.program[at]
        manager = self.managers[number]
        ready = manager.resolved(self.programs[number].plan.chains[self.chain[at]].output)
        if manager.done and np.isnan(self.program_end_s[number]):
            self.program_end_s[number] = now
        self._send(number, ready, now + self.rtt_s)


def _prefixes(of: Program, chain: int, prompt: int) -> tuple[tuple[str, int], ...]:
    """The beginnings of a prompt at powers of two of its blocks: what boundaries of placeholders are to a text."""
    if not of.blocks:
        return ()
    blocks = of.blocks[chain]
    ends = [1 << power for power in range(len(blocks).bit_length()) if (16 << power) < prompt]
    return tuple((str(blocks[end - 1]), 16 * end) for end in ends)


def _rows(programs: Many[Program], program: list[int], chain: list[int]) -> LLMWorkload:
    pairs = list(zip(program, chain, strict=True))
    sizes = np.array([programs[at].sizes[number] for at, number in pairs], np.int64)
    blocks = None
    if any(of.blocks for of in programs):
        blocks = tuple(programs[at].blocks[number] if programs[at].blocks else () for at, number in pairs)
    arrived = np.array([programs[at].arrived_s for at in program])
    return LLMWorkload(
        "graphs", "Programs of several calls.", arrived, sizes[:, 0], sizes[:, 1], float(arrived[-1]),
        blocks=blocks, block_tokens=16,
    )  # fmt: skip
