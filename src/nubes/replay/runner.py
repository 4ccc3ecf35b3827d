"""Replays a workload under many configurations, side by side where there are cores, and compares them."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Protocol

from nubes.kernel.errors import UsageError
from nubes.replay.configuration import DEFAULTS, Configuration
from nubes.replay.report import Gap, Report, Result, gap_of, row_of

if TYPE_CHECKING:
    from nubes.workloads.outcome import Outcome
    from nubes.workloads.recording import Recording
    from nubes.workloads.workload import Workload

Progress = Callable[[float, str], None]
POLL_S = 0.1
AS_LIVE = "as it was live"


class Task(Protocol):
    """What a worker process is told to do."""

    number: int
    label: str

    def work(self, tick: Callable[[float], None]) -> Any:
        """Does it and returns what came of it, boiled down; `tick` is told the share that is done."""
        ...


class Job:
    """One configuration over one workload. No configuration: as it was live."""

    __slots__ = ("configuration", "label", "number", "seed", "source")

    def __init__(self, number: int, configuration: Configuration | None, label: str, source: Any, seed: int) -> None:
        self.number = number
        self.configuration = configuration
        self.label = label
        self.source = source
        self.seed = seed

    def run(self, tick: Callable[[float], None]) -> tuple[Workload, Outcome]:
        """Simulates; `tick` is told the share that is done."""
        from nubes.drivers.sim import simulate
        from nubes.functions.controller import Functions
        from nubes.workloads.recording import Recording

        controls = None
        workload = self.source(self.seed) if callable(self.source) else self.source
        if isinstance(workload, Recording):
            recording, workload = workload, workload.workload
            if self.configuration is None:
                workload, controls = recording.out_of_sample(), recording.controls
            else:
                controls = recording.without_policies(not self.configuration.limited, self.configuration.gives_way)
        elif self.configuration is not None and self.configuration.hedging:
            workload = workload.idempotent()  # it does not tell which of its functions are
        controller = Functions() if self.configuration is None else self.configuration.controller()
        calls = max(1, workload.calls)
        return workload, simulate(workload, controller, controls=controls, progress=lambda done: tick(done / calls))

    def work(self, tick: Callable[[float], None]) -> Result:
        return Result.of(*self.run(tick))


def replay(
    workload: Workload | Recording | Callable[[int], Workload],
    configurations: Sequence[Configuration],
    *,
    jobs: int | None = None,
    seeds: Sequence[int] = (0,),
    progress: Progress | None = None,
) -> Report:
    """Runs every configuration over the workload, once for each seed if the workload is made from a seed.

    A recording is first run again under the policies that were live then; how far that is from what was measured is
    the report's gap. At most `jobs` processes run at a time (default: one for each core). `progress` is told the
    share that is done, and of what.
    """
    from nubes.workloads.recording import Recording

    if not configurations:
        raise UsageError("There is nothing to compare.", "Name at least one policy: --keep-alive fixed-window,cidre.")
    live = workload.policies if isinstance(workload, Recording) else DEFAULTS
    hedged = any(configuration.hedging for configuration in configurations)
    if hedged and isinstance(workload, Recording) and not any(s.idempotent for s in workload.workload.specs):
        raise UsageError(
            "Nothing that was recorded may be hedged: no function says that it may run twice.",
            "Say idempotent=True where that is so, or leave --hedging out.",
        )
    configurations = [configuration.filled(live) for configuration in configurations]
    if len(set(configurations)) < len(configurations):
        raise UsageError("A configuration is named twice.", "Name each policy once.")
    for configuration in configurations:
        configuration.controller()  # a wrong name is an error before anything runs
    labels = [configuration.label(configurations) for configuration in configurations]
    todo: list[Job] = []
    if isinstance(workload, Recording):
        todo.append(Job(0, None, AS_LIVE, workload, 0))
        seeds = seeds[:1]
    elif not callable(workload):
        seeds = seeds[:1]  # a fixed workload comes out the same for every seed
    for configuration, label in zip(configurations, labels, strict=True):
        todo += [Job(len(todo) + nth, configuration, label, workload, seed) for nth, seed in enumerate(seeds)]
    done = run(todo, jobs, progress)
    gap: Gap | None = None
    if isinstance(workload, Recording):
        gap = gap_of(workload, done.pop(0))
        todo.pop(0)
    rows = []
    for configuration, label in zip(configurations, labels, strict=True):
        rows.append(row_of(label, configuration, [d for d, j in zip(done, todo, strict=True) if j.label == label]))
    name, source, calls, functions, seconds = done[0].about
    return Report(name, source, calls, functions, seconds, list(seeds), rows, gap)


def run(todo: Sequence[Task], jobs: int | None = None, progress: Progress | None = None) -> list[Any]:
    """Carries out tasks (numbered from 0), in processes of their own where there are cores; results in their order."""
    workers = min(jobs or os.cpu_count() or 1, len(todo))
    shares = [0.0] * len(todo)

    def tell(number: int, share: float) -> None:
        shares[number] = share
        if progress is not None:
            progress(sum(shares) / len(todo), todo[number].label)

    if workers <= 1:
        return [_alone(task, tell) for task in todo]
    # Forked workers share the workload's columns; where there is no safe fork they get a copy.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    ticks = context.Array("d", len(todo), lock=False)
    with ProcessPoolExecutor(workers, context, _set_up, (todo, ticks)) as pool:
        futures = {pool.submit(_carry_out, job.number): job for job in todo}
        pending = set(futures)
        while pending:
            finished, pending = wait(pending, POLL_S, FIRST_COMPLETED)
            for future in finished:
                future.result()  # an error in a worker is raised here at once
                ticks[futures[future].number] = 1.0
            for number, share in enumerate(ticks):
                if share > shares[number]:
                    tell(number, share)
        return [future.result() for future in futures]


def _alone(task: Task, tell: Callable[[int, float], None]) -> Any:
    """In this process."""
    result = task.work(lambda share: tell(task.number, share))
    tell(task.number, 1.0)
    return result


_todo: Sequence[Task] = ()
_ticks: Any = None


def _set_up(todo: Sequence[Task], ticks: Any) -> None:
    global _todo, _ticks
    _todo, _ticks = todo, ticks


def _carry_out(number: int) -> Any:
    def tick(share: float) -> None:
        _ticks[number] = min(share, 0.999)

    return _todo[number].work(tick)
