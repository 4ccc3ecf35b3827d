"""What a replay of LLM requests says: a row for each configuration, its own error of a recording, and an order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import msgspec

from nubes.replay.llm.configuration import Configuration
from nubes.replay.llm.measures import Measures, percentiles
from nubes.replay.llm.slo import Slo
from nubes.replay.measures import Percentiles, curve

if TYPE_CHECKING:
    from nubes.drivers.sim.llm import Served
    from nubes.llm.engine.recording import Recording

# What configurations can be put in order by, lowest first.
METRICS: dict[str, Callable[[Measures], float]] = {
    "ttft_p50": lambda m: m.ttft_s.p50,
    "ttft_p95": lambda m: m.ttft_s.p95,
    "ttft_p99": lambda m: m.ttft_s.p99,
    "tpot_p50": lambda m: m.tpot_s.p50,
    "tpot_p95": lambda m: m.tpot_s.p95,
    "tpot_p99": lambda m: m.tpot_s.p99,
    "goodput": lambda m: -(m.goodput or 0.0),
    "dollars": lambda m: m.dollars_per_million,
}
CHECKED = ("ttft_p50", "ttft_p95", "tpot_p50", "tpot_p95")  # what a replay of a recording is held against
FINEST = 0.005  # relative differences below this are not worth an order


class Result(msgspec.Struct, frozen=True):
    """One run, boiled down."""

    about: tuple[str, str, int, float]  # the workload: name, source, requests, seconds
    measures: Measures
    ttft_curve: list[float]
    tpot_curve: list[float]
    steps: int
    wall_s: float


class Row(msgspec.Struct, frozen=True):
    """One configuration: medians over the seeds, and the lowest and highest of what it can be ranked by.

    The curves are quantiles (`nubes.replay.measures.curve`) of the first seed. `hourly`: dollars of all its engines.
    """

    label: str
    configuration: Configuration
    model: str  # what the step model rests on, in a sentence
    hourly: float
    measures: Measures
    range: dict[str, tuple[float, float]]
    ttft_curve: list[float]
    tpot_curve: list[float]
    steps: int
    requests_per_s: float  # simulated in a second


class Gap(msgspec.Struct, frozen=True):
    """How far the replay of what was live is from what was measured, relative to that."""

    ttft_s: Percentiles  # measured
    tpot_s: Percentiles
    gap: dict[str, float]
    ttft_curve: list[float]
    tpot_curve: list[float]


class Report(msgspec.Struct, frozen=True):
    name: str
    source: str
    requests: int
    seconds: float
    slo: Slo | None
    seeds: list[int]
    rows: list[Row]
    gap: Gap | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        built: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        built["ranking"] = {metric: ranking(self, metric) for metric in METRICS}
        return built


def ranking(report: Report, metric: str = "ttft_p99") -> list[list[str]]:
    """Labels from best to worst; those that cannot be told apart share a place.

    Two neighbours are told apart if their ranges over the seeds do not overlap, and if they differ by more than the
    replay's own error, where that is known, and half a percent.
    """
    value = METRICS[metric]
    rows = sorted(report.rows, key=lambda row: value(row.measures))
    error = report.gap.gap.get(metric, max(report.gap.gap.values())) if report.gap else 0.0
    places: list[list[str]] = []
    for before, row in zip([None, *rows], rows, strict=False):
        if before is None or _apart(before, row, metric, max(FINEST, error)):
            places.append([])
        places[-1].append(row.label)
    return places


def _apart(better: Row, worse: Row, metric: str, margin: float) -> bool:
    low, high = METRICS[metric](better.measures), METRICS[metric](worse.measures)
    return better.range[metric][1] < worse.range[metric][0] and high - low > margin * abs(low)


def row_of(label: str, configuration: Configuration, model: str, hourly: float, results: Sequence[Result]) -> Row:
    """The row of one configuration from its runs, one for each seed."""
    values = {metric: [value(r.measures) for r in results] for metric, value in METRICS.items()}
    wall_s = sum(r.wall_s for r in results)
    first = results[0]
    return Row(
        label, configuration, model, hourly, _medians([r.measures for r in results]),
        {metric: (min(seen), max(seen)) for metric, seen in values.items()}, first.ttft_curve, first.tpot_curve,
        sum(r.steps for r in results), sum(r.about[2] for r in results) / wall_s if wall_s else 0.0,
    )  # fmt: skip


def gap_of(recording: Recording, result: Result) -> Gap:
    """The gap between a recording and its own replay."""
    ttft_s, tpot_s = percentiles(recording.ttft_s), percentiles(recording.tpot_s)
    measured = msgspec.structs.replace(result.measures, ttft_s=ttft_s, tpot_s=tpot_s)
    gap = {}
    for metric in CHECKED:
        was, is_now = METRICS[metric](measured), METRICS[metric](result.measures)
        gap[metric] = abs(is_now - was) / was if was else 0.0
    return Gap(ttft_s, tpot_s, gap, curve(recording.ttft_s), curve(recording.tpot_s))


def boiled(served: Served, found: Measures) -> Result:
    workload = served.workload
    ttft_s = served.ttft_s[served.ttft_s == served.ttft_s]  # without those never served
    tpot_s = served.tpot_s[served.tpot_s == served.tpot_s]
    about = (workload.name, workload.source, workload.requests, workload.seconds)
    return Result(about, found, curve(ttft_s), curve(tpot_s), served.steps, served.took_s)


def _medians(found: Sequence[Measures]) -> Measures:
    """Field by field."""
    if len(found) == 1:
        return found[0]

    def middle(values: list[Any]) -> Any:
        if isinstance(values[0], Percentiles):
            return Percentiles(*map(median, zip(*map(msgspec.structs.astuple, values), strict=True)))
        if values[0] is None:
            return None
        return type(values[0])(median(values))

    return Measures(*(middle([getattr(m, name) for m in found]) for name in Measures.__struct_fields__))
