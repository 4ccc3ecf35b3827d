"""A replay of LLM requests in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nubes.kernel.units import show_seconds
from nubes.replay.llm.report import Gap, Report, Row, ranking

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

Cell = tuple[str, float]  # what is shown, and what is better the lower it is

TIMES = ("TTFT p50", "p90", "p99", "TPOT p50", "p90", "p99", "gap p99")
TIMES_MEANING = "TTFT: arrival to first token. TPOT: a request's mean time between tokens. gap: any time between two."
WORK_MEANING = (
    "KV: mean share of its memory in use. hits: prompt tokens whose KV was there. price: of a million tokens."
)


def table(report: Report) -> Group:
    """The workload, times and work of each configuration with the best marked, the gap, and the order."""
    from rich.console import Group
    from rich.text import Text

    speed = sorted(row.requests_per_s for row in report.rows)[len(report.rows) // 2]
    steps = sum(row.steps for row in report.rows)
    parts: list[RenderableType] = [
        Text.assemble((report.name, "bold"), f"  {about(report)}"),
        Text(report.source, style="dim"),
        *(Text(model, style="dim") for model in models(report)),
        Text(),
        _grid(report.rows, TIMES, times, [True] * len(TIMES)),
        Text(TIMES_MEANING, style="dim"),
        Text(),
        _grid(report.rows, work_columns(report), work, marks(report)),
        Text(WORK_MEANING, style="dim"),
        Text(f"{steps:,} steps, {speed:,.0f} requests a second on a core.", style="dim"),
        Text(),
    ]
    unserved = [row.label for row in report.rows if row.measures.unserved]
    if unserved:
        parts.append(Text(f"Requests were never served under {', '.join(unserved)}.", style="yellow"))
    if report.gap is not None:
        parts.append(Text(gap_text(report.gap), style="cyan"))
    if len(report.rows) > 1:
        parts += [Text(line) for line in order_lines(report)]
    return Group(*parts)


def _grid(
    rows: Sequence[Row], columns: Sequence[str], cells: Callable[[Row], list[Cell]], marked: Sequence[bool]
) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="dim")
    grid.add_column("policy", overflow="fold", min_width=min(9, max(len(row.label) for row in rows)))
    for column in columns:
        grid.add_column(column, justify="right", no_wrap=True)
    shown = [cells(row) for row in rows]
    best = best_cells(shown, marked)
    for number, (row, found) in enumerate(zip(rows, shown, strict=True)):
        texts = [Text(text, "bold green" if (number, at) in best else "") for at, (text, _) in enumerate(found)]
        grid.add_row(Text(row.label, style="bold"), *texts)
    return grid


def about(report: Report) -> str:
    slo = f", SLO {report.slo}" if report.slo else ""
    return f"{report.requests:,} requests, {show_seconds(report.seconds)}{slo}"


def models(report: Report) -> list[str]:
    """What the step models rest on, each once."""
    return list({row.model: None for row in report.rows})


def gap_text(gap: Gap) -> str:
    """How far the simulator is from what was measured, in one sentence."""
    shown = ", ".join(f"{metric.replace('_', ' ').upper()} {off:.1%}" for metric, off in gap.gap.items())
    return f"Its own error, from serving again what was live: {shown}. Closer than that, policies share a place."


def order_lines(report: Report) -> list[str]:
    """The order of the configurations by what matters most, best first; `=` where they cannot be told apart."""
    words = {"ttft_p99": "lowest TTFT p99", "tpot_p99": "lowest TPOT p99", "dollars": "lowest price"}
    if report.slo is not None:
        words["goodput"] = "highest goodput"
    lines = []
    for metric, text in words.items():
        sign = " > " if metric == "goodput" else " < "
        lines.append(f"{text}: {sign.join(' = '.join(place) for place in ranking(report, metric))}")
    return lines


def times(row: Row) -> list[Cell]:
    m = row.measures
    values = (m.ttft_s.p50, m.ttft_s.p90, m.ttft_s.p99, m.tpot_s.p50, m.tpot_s.p90, m.tpot_s.p99, m.gap_s.p99)
    return [(show_seconds(value), value) for value in values]


def work_columns(report: Report) -> list[str]:
    slo = ["goodput", "met"] if report.slo is not None else []
    return [*slo, "tokens/s", "KV", "peak", "hits", "preempted", "price", "$/hour"]


def marks(report: Report) -> list[bool]:
    """Of which columns the best is marked."""
    return [not column.startswith(("KV", "peak")) for column in work_columns(report)]


def work(row: Row) -> list[Cell]:
    m = row.measures
    slo: list[Cell] = []
    if m.goodput is not None and m.attained is not None:
        slo = [(f"{m.goodput:.3g}/s", -m.goodput), (f"{m.attained:.1%}", -m.attained)]
    return [
        *slo,
        (f"{m.output_tokens_per_s:,.0f}", -m.output_tokens_per_s),
        (f"{m.kv_mean:.0%}", m.kv_mean),
        (f"{m.kv_peak:.0%}", m.kv_peak),
        (f"{m.prefix_hits:.1%}", -m.prefix_hits),
        (f"{m.preemptions:,}", m.preemptions),
        (f"${m.dollars_per_million:.3g}", m.dollars_per_million),
        (f"${row.hourly:.3g}", row.hourly),
    ]


def best_cells(rows: Sequence[Sequence[Cell]], marked: Sequence[bool]) -> set[tuple[int, int]]:
    """(row, column) of the best in marked columns where the rows differ."""
    found = set()
    for at, mark in enumerate(marked):
        column = [row[at] for row in rows]
        if mark and len({text for text, _ in column}) > 1:
            text = min(column, key=lambda cell: cell[1])[0]
            found |= {(number, at) for number, cell in enumerate(column) if cell[0] == text}
    return found
