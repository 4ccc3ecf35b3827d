"""What an outcome comes to: cold starts, latency, memory-time, dollars. The same for a live run and for a replay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from nubes.functions.events import COLD, DELAYED
from nubes.workloads.outcome import ANSWERED, FAILED, UNANSWERED, Outcome
from nubes.workloads.workload import Workload

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DOLLARS_PER_GIB_S = (
    0.0000166667  # AWS Lambda, x86, first tier, us-east-1: here charged for all time an instance is loaded
)
DOLLARS_PER_CALL = 0.20 / 1e6
PERCENTILES = (50, 90, 95, 99)
SHORTEST_S = 1e-3  # slowdown is latency over execution, of at least this: else calls that do nothing would decide it
NINES, POINTS = 4.0, 161  # a distribution is kept at as many quantiles, up to 99.99 %, denser towards the tail


class Percentiles(msgspec.Struct, frozen=True):
    p50: float
    p90: float
    p95: float
    p99: float


class Measures(msgspec.Struct, frozen=True):
    """Times in seconds; memory-time in GiB-seconds over the workload's length."""

    calls: int
    failed: int
    unanswered: int
    cold_share: float  # of the calls that got an instance: they waited for a new one
    delayed_share: float  # they waited for a busy one
    latency_s: Percentiles  # from arrival to answer
    wait_s: Percentiles  # from arrival to an instance
    slowdown: Percentiles  # latency over execution
    mean_latency_s: float
    mean_wait_s: float
    function_cold: tuple[float, float, float]  # quartiles over functions of the share of their calls that were cold
    starts: int
    wasted_gib_s: float  # loaded without executing, parents in the process tree included
    loaded_gib_s: float
    idle_minutes: float  # instances that were ready and had nothing to do
    peak_bytes: float
    peak_instances: int
    dollars: float


def measures(workload: Workload, outcome: Outcome) -> Measures:
    """All measures of one outcome. Latency is of answered calls, shares are of those that got an instance."""
    import numpy as np

    started = ~np.isnan(outcome.started_s)
    answered = outcome.end == ANSWERED
    latency = latencies(workload, outcome)
    wait = waits(workload, outcome)
    slowdown = latency / np.maximum(workload.exec_s[answered], SHORTEST_S)
    memory = _memory(workload, outcome)
    got = max(1, int(started.sum()))
    return Measures(
        calls=workload.calls,
        failed=int((outcome.end == FAILED).sum()),
        unanswered=int((outcome.end == UNANSWERED).sum()),
        cold_share=float((outcome.how[started] == COLD).sum() / got),
        delayed_share=float((outcome.how[started] == DELAYED).sum() / got),
        latency_s=_percentiles(latency),
        wait_s=_percentiles(wait),
        slowdown=_percentiles(slowdown),
        mean_latency_s=float(latency.mean()) if len(latency) else 0.0,
        mean_wait_s=float(wait.mean()) if len(wait) else 0.0,
        function_cold=_quartiles(function_cold(workload, outcome)),
        starts=int((outcome.lives.function >= 0).sum()),
        dollars=memory["loaded_gib_s"] * DOLLARS_PER_GIB_S + workload.calls * DOLLARS_PER_CALL,
        peak_instances=int(memory.pop("peak_instances")),
        **memory,
    )


def latencies(workload: Workload, outcome: Outcome) -> NDArray[np.float64]:
    """Seconds from arrival to answer of each answered call, in order of arrival."""
    answered = outcome.end == ANSWERED
    latency: NDArray[np.float64] = (outcome.ended_s - workload.arrival_s)[answered]
    return latency


def waits(workload: Workload, outcome: Outcome) -> NDArray[np.float64]:
    """Seconds from arrival to an instance of each call that got one."""
    import numpy as np

    wait: NDArray[np.float64] = (outcome.started_s - workload.arrival_s)[~np.isnan(outcome.started_s)]
    return wait


def function_cold(workload: Workload, outcome: Outcome) -> NDArray[np.float64]:
    """Share of cold calls of each function that was called, ascending."""
    import numpy as np

    started = ~np.isnan(outcome.started_s)
    calls = np.bincount(workload.function[started], minlength=len(workload.specs))
    cold = np.bincount(workload.function[started & (outcome.how == COLD)], minlength=len(workload.specs))
    ratios: NDArray[np.float64] = np.sort(cold[calls > 0] / calls[calls > 0])
    return ratios


def curve(values: NDArray[np.float64]) -> list[float]:
    """The quantiles `1 - 10**-t`, t evenly from 0 to `NINES`: enough to draw a distribution with its tail."""
    import numpy as np

    if not len(values):
        return []
    return [float(q) for q in np.quantile(values, 1.0 - 10.0 ** -np.linspace(0.0, NINES, POINTS))]


def even_curve(values: NDArray[np.float64]) -> list[float]:
    """The percentiles 0 to 100."""
    import numpy as np

    return [float(q) for q in np.percentile(values, np.arange(101))] if len(values) else []


def _quartiles(values: NDArray[np.float64]) -> tuple[float, float, float]:
    import numpy as np

    if not len(values):
        return 0.0, 0.0, 0.0
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return float(low), float(middle), float(high)


def _percentiles(values: NDArray[np.float64]) -> Percentiles:
    import numpy as np

    if not len(values):
        return Percentiles(0.0, 0.0, 0.0, 0.0)
    return Percentiles(*(float(q) for q in np.percentile(values, PERCENTILES)))


def _memory(workload: Workload, outcome: Outcome) -> dict[str, float]:
    """Memory-time from the processes' lives, cut off at the workload's end."""
    import numpy as np

    lives, end = outcome.lives, workload.seconds
    start, stop = np.minimum(lives.start_s, end), np.minimum(lives.stop_s, end)
    ready = np.clip(lives.ready_s, start, stop)
    gib = lives.memory_bytes / 2**30
    busy = _busy(workload, outcome)
    of_functions = lives.function >= 0
    loaded = float(((stop - start) * gib).sum())
    return {
        "loaded_gib_s": loaded,
        "wasted_gib_s": loaded - float((busy * gib).sum()),
        "idle_minutes": float(((stop - ready - busy)[of_functions]).sum() / 60.0),
        "peak_bytes": _peak(start, stop, lives.memory_bytes),
        "peak_instances": _peak(start[of_functions], stop[of_functions], np.ones(int(of_functions.sum()))),
    }


def _busy(workload: Workload, outcome: Outcome) -> NDArray[np.float64]:
    """Seconds that each process ran at least one call, until the workload's end."""
    import numpy as np

    ran = np.flatnonzero((outcome.instance >= 0) & ~np.isnan(outcome.ended_s))
    row = outcome.instance[ran]
    shared = np.array([spec.concurrency > 1 or spec.batching is not None for spec in workload.specs], bool)
    end = np.minimum(workload.seconds, outcome.lives.stop_s[row])
    start, stop = np.minimum(outcome.started_s[ran], end), np.minimum(outcome.ended_s[ran], end)
    if shared.any():  # calls that run side by side count once: each from where those before it on its instance end
        order = np.lexsort((start, row))
        row, start, stop = row[order], start[order], stop[order]
        for calls in np.split(np.arange(len(row)), np.flatnonzero(np.diff(row)) + 1):
            until = np.maximum.accumulate(stop[calls])
            start[calls[1:]] = np.clip(start[calls[1:]], np.minimum(until[:-1], stop[calls[1:]]), None)
    busy: NDArray[np.float64] = np.bincount(row, stop - start, len(outcome.lives.function)).astype(np.float64)
    return busy


def _peak(start: NDArray[np.float64], stop: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    import numpy as np

    if not len(start):
        return 0.0
    at = np.concatenate((start, stop))
    change = np.concatenate((weight, -weight))
    order = np.lexsort((change, at))  # at the same time what stops goes before what starts
    return float(np.cumsum(change[order]).max())
