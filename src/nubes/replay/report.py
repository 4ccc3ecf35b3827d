"""What a replay says: one row for each configuration, how far the simulator is from what was live, and an order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import hypot
from typing import TYPE_CHECKING, Any

import msgspec

from nubes.replay.configuration import Configuration
from nubes.replay.measures import Measures, curve, even_curve, function_cold, latencies, measures, waits

if TYPE_CHECKING:
    from nubes.workloads.outcome import Outcome
    from nubes.workloads.recording import Recording
    from nubes.workloads.workload import Workload

# What configurations can be put in order by, lowest first. Shares differ by points, the rest by a part of the smaller.
METRICS: dict[str, Callable[[Measures], float]] = {
    "cold_share": lambda m: m.cold_share,
    "p50": lambda m: m.latency_s.p50,
    "p95": lambda m: m.latency_s.p95,
    "p99": lambda m: m.latency_s.p99,
    "mean": lambda m: m.mean_latency_s,
    "wasted": lambda m: m.wasted_gib_s,
    "dollars": lambda m: m.dollars,
}
FINEST, FINEST_POINTS = 0.005, 0.0001  # differences below these are not worth an order, however exact the replay
RESAMPLES, BLOCKS = 200, 40  # of the block bootstrap that tells how far a measured value itself may be off


class Result(msgspec.Struct, frozen=True):
    """One run, boiled down."""

    about: tuple[str, str, int, int, float]  # the workload: name, source, calls, functions, seconds
    measures: Measures
    latency_curve: list[float]
    wait_curve: list[float]
    function_cold_curve: list[float]
    events: int
    wall_s: float

    @classmethod
    def of(cls, workload: Workload, outcome: Outcome) -> Result:
        return cls(
            (workload.name, workload.source, workload.calls, len(workload.specs), workload.seconds),
            measures(workload, outcome),
            curve(latencies(workload, outcome)),
            curve(waits(workload, outcome)),
            even_curve(function_cold(workload, outcome)),
            outcome.events,
            outcome.wall_s,
        )


class Row(msgspec.Struct, frozen=True):
    """One configuration: medians over the seeds, and the lowest and highest of what it can be ranked by."""

    label: str
    configuration: Configuration
    measures: Measures
    range: dict[str, tuple[float, float]]
    latency_curve: list[float]  # quantiles (`nubes.replay.measures.curve`), of the first seed
    wait_curve: list[float]
    function_cold_curve: list[float]  # percentiles over functions of the share of their calls that were cold
    events: int
    events_per_s: float


class Gap(msgspec.Struct, frozen=True):
    """How far the replay of what was live is from what was measured. `margin`: closer than that is not told apart.

    In that replay no start has its own measured time, but another's of the same function: other policies start
    instances at other times too.

    Shares (`cold_share`) in points from 0 to 1, everything else relative to what was measured. The margin adds to the
    gap how far the measurement itself may be off: half the width of its 95 % interval (block bootstrap).
    """

    measured: Measures
    replayed: Measures
    gap: dict[str, float]
    margin: dict[str, float]
    latency_curve: list[float]  # measured
    wait_curve: list[float]


class Report(msgspec.Struct, frozen=True):
    name: str
    source: str
    calls: int
    functions: int
    seconds: float
    seeds: list[int]
    rows: list[Row]
    gap: Gap | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; an unlimited capacity is null."""
        built: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        built["ranking"] = {metric: ranking(self, metric) for metric in METRICS}
        return built


def ranking(report: Report, metric: str = "p95") -> list[list[str]]:
    """Labels from best to worst; those that cannot be told apart share a place.

    Two neighbours are told apart if the ranges over the seeds do not overlap, and if they differ by more than the
    margin: that of a recording, but at least half a percent (shares: 0.01 points).
    """
    value = METRICS[metric]
    rows = sorted(report.rows, key=lambda row: value(row.measures))
    places: list[list[str]] = []
    for before, row in zip([None, *rows], rows, strict=False):
        if before is None or apart(report, metric, before, row):
            places.append([])
        places[-1].append(row.label)
    return places


def apart(report: Report, metric: str, better: Row, worse: Row) -> bool:
    """Whether `worse` is known to be worse than `better`."""
    low, high = METRICS[metric](better.measures), METRICS[metric](worse.measures)
    if better.range[metric][1] >= worse.range[metric][0]:
        return False
    finest = FINEST_POINTS if metric == "cold_share" else FINEST
    margin = max(finest, report.gap.margin[metric] if report.gap else 0.0)
    return high - low > (margin if metric == "cold_share" else margin * low)


def row_of(label: str, configuration: Configuration, results: Sequence[Result]) -> Row:
    """The row of one configuration from its runs, one for each seed."""
    values = {metric: [value(r.measures) for r in results] for metric, value in METRICS.items()}
    wall_s = sum(r.wall_s for r in results)
    return Row(
        label,
        configuration,
        _medians([r.measures for r in results]),
        {metric: (min(seen), max(seen)) for metric, seen in values.items()},
        results[0].latency_curve,
        results[0].wait_curve,
        results[0].function_cold_curve,
        sum(r.events for r in results),
        sum(r.events for r in results) / wall_s if wall_s else 0.0,
    )


def gap_of(recording: Recording, result: Result) -> Gap:
    """The gap between a recording and its own replay."""
    measured = measures(recording.workload, recording.measured)
    noise = _noise(recording)
    gap, margin = {}, {}
    for metric, value in METRICS.items():
        was, is_now = value(measured), value(result.measures)
        gap[metric] = abs(is_now - was) if metric == "cold_share" else abs(is_now - was) / was if was else 0.0
        margin[metric] = hypot(gap[metric], noise.get(metric, 0.0))
    workload, outcome = recording.workload, recording.measured
    curves = curve(latencies(workload, outcome)), curve(waits(workload, outcome))
    return Gap(measured, result.measures, gap, margin, *curves)


def _noise(recording: Recording) -> dict[str, float]:
    """Half the width of the 95 % interval of what was measured per call: blocks of calls in a row, drawn again."""
    import numpy as np

    from nubes.functions.events import COLD
    from nubes.workloads.draws import generator
    from nubes.workloads.outcome import ANSWERED

    answered = recording.measured.end == ANSWERED
    latency = latencies(recording.workload, recording.measured)
    cold = (recording.measured.how == COLD)[answered]
    blocks = np.array_split(np.arange(len(latency)), min(BLOCKS, max(1, len(latency))))
    draw = generator(0, "bootstrap")
    seen: dict[str, list[float]] = {"cold_share": [], "mean": [], "p50": [], "p95": [], "p99": []}
    for _ in range(RESAMPLES if len(latency) else 0):
        picked = np.concatenate([blocks[i] for i in draw.integers(len(blocks), size=len(blocks))])
        seen["cold_share"].append(float(cold[picked].mean()))
        seen["mean"].append(float(latency[picked].mean()))
        for metric, value in zip(("p50", "p95", "p99"), np.percentile(latency[picked], (50, 95, 99)), strict=True):
            seen[metric].append(float(value))
    noise = {}
    for metric, values in seen.items():
        if values:
            low, middle, high = np.percentile(values, (2.5, 50, 97.5))
            noise[metric] = float(high - low) / 2.0 / (1.0 if metric == "cold_share" else float(middle) or 1.0)
    return noise


def _medians(all: Sequence[Measures]) -> Measures:
    """Field by field, also within percentiles."""

    def median(values: Sequence[Any]) -> Any:
        first = values[0]
        if isinstance(first, (list, tuple)):
            return [median(column) for column in zip(*values, strict=True)]
        if isinstance(first, dict):
            return {key: median([value[key] for value in values]) for key in first}
        middle = sorted(values)[(len(values) - 1) // 2 : len(values) // 2 + 1]
        return middle[0] if len(middle) == 1 or isinstance(first, int) else sum(middle) / 2.0

    return msgspec.convert(median([msgspec.to_builtins(one) for one in all]), Measures)
