"""What the simulated reproductions share: finding a workload, and running it under several configurations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from nubes.kernel.errors import NotFound, UsageError
from nubes.papers.context import Context

if TYPE_CHECKING:
    from nubes.replay.configuration import Configuration
    from nubes.replay.measures import Measures
    from nubes.workloads.workload import Workload

Source = Callable[[int], "Workload"]
AZURE = "azure-functions-2019"


def source(ctx: Context, name: str, stand_in: str, **options: object) -> Source:
    """A workload for each seed: the trace the user named, else `name` if that is at hand, else `stand_in` made up.

    `options` are for the reader of `name`.
    """
    from nubes.workloads import Workload, load

    def make(seed: int) -> Workload:
        try:
            found = load(ctx.trace, seed) if ctx.trace else load(name, seed, **options)
        except NotFound:
            if ctx.trace:
                raise
            found = load(stand_in, seed)
        if not isinstance(found, Workload):
            raise UsageError(f"{ctx.trace} is a recording.", "Give a trace here; `nubes replay` takes recordings.")
        return found

    return make


def azure(ctx: Context, functions: int, **options: object) -> Source:
    """The Azure sample of 100 or 500 functions, or functions made up like them."""
    return source(ctx, f"{AZURE}/{functions}", f"azure-like(functions={functions},length=8h)", **options)


def with_starts(make: Source, start_s: float) -> Source:
    """The same workload with every start taking `start_s`."""

    def changed(seed: int) -> Workload:
        import numpy as np

        workload = make(seed)
        return replace(workload, start_s=(np.array([start_s]),) * len(workload.specs))

    return changed


def with_specs(make: Source, **fields: object) -> Source:
    """The same workload with these fields in all of its function specs."""

    def changed(seed: int) -> Workload:
        workload = make(seed)
        return replace(workload, specs=tuple(msgspec.structs.replace(spec, **fields) for spec in workload.specs))

    return changed


def words(workload: Workload) -> str:
    """A workload in words."""
    return f"{workload.name}, {workload.calls:,} calls: {workload.source}"


def sweep(ctx: Context, make: Source, configurations: Sequence[Configuration]) -> list[list[Measures]]:
    """[configuration][seed]: what each configuration measures on each seed's workload."""
    from nubes.replay.runner import Job, run

    todo = [
        Job(0, configuration.filled(), configuration.label(configurations), make, seed)
        for configuration in configurations
        for seed in range(ctx.seeds)
    ]
    for number, job in enumerate(todo):
        job.number = number
    done = run(todo, progress=lambda share, label: ctx.say(f"simulating {label}: {share:.0%}"))
    measured = [result.measures for result in done]
    return [measured[i : i + ctx.seeds] for i in range(0, len(measured), ctx.seeds)]
