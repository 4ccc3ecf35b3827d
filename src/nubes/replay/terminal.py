"""A report in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nubes.kernel.units import show_seconds
from nubes.replay.report import Gap, Report, Row, ranking

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

COLUMNS = ("cold", "p50", "p95", "p99", "wasted", "cost", "starts")
MEANING = "wasted: memory loaded without executing. cost: at public prices, for all the time that instances are loaded."
BEST_OF = 6  # columns in which the best is marked
NARROWEST = 9  # of the column of policies: beside the widest figures that leaves 80 columns


def table(report: Report) -> Group:
    """The workload, one row for each configuration with the best of each column marked, the gap, and the order."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="dim")
    longest = max(len(row.label) for row in report.rows)
    grid.add_column("policy", overflow="fold", min_width=min(NARROWEST, longest))
    for column in COLUMNS:
        grid.add_column(column, justify="right", no_wrap=True)
    marked = best(report.rows)
    for row in report.rows:
        shown = [Text(text, "bold green" if (row.label, i) in marked else "") for i, text in enumerate(cells(row))]
        grid.add_row(Text(row.label, style="bold"), *shown)
    events = sum(row.events for row in report.rows)
    speed = sorted(row.events_per_s for row in report.rows)[len(report.rows) // 2]
    parts: list[RenderableType] = [
        Text.assemble((report.name, "bold"), f"  {about(report)}"),
        Text(report.source, style="dim"),
        Text(),
        grid,
        Text(
            "wasted: loaded without executing. cost: at public prices, all the time that instances are loaded.", "dim"
        ),
        Text(f"{events:,} events, {speed:,.0f} a second on a core.", "dim"),
        Text(),
    ]
    unfinished = [row.label for row in report.rows if row.measures.unanswered]
    if unfinished:
        parts.append(Text(f"Calls were left without an answer under {', '.join(unfinished)}.", style="yellow"))
    if report.gap is not None:
        parts.append(Text(gap_text(report.gap), style="cyan"))
    if len(report.rows) > 1:
        parts += [Text(line) for line in order_lines(report)]
    return Group(*parts)


def about(report: Report) -> str:
    return f"{report.calls:,} calls, {report.functions} functions, {show_seconds(report.seconds)}"


def gap_text(gap: Gap) -> str:
    """How far the simulator is from what was measured, in one sentence."""
    return (
        "Its own error, from running again what was live: "
        f"cold starts {gap.gap['cold_share'] * 100:.2f} points, p50 {gap.gap['p50']:.1%}, p95 {gap.gap['p95']:.1%}, "
        f"cost {gap.gap['dollars']:.1%}. Policies closer than that, or than the recording's own noise, share a place."
    )


def order_lines(report: Report) -> list[str]:
    """The order of the configurations by what matters most, best first; `=` where they cannot be told apart."""
    words = {"cold_share": "fewest cold starts", "p95": "lowest p95 latency", "dollars": "lowest cost"}
    return [f"{text}: {' < '.join(' = '.join(place) for place in ranking(report, m))}" for m, text in words.items()]


def best(rows: Sequence[Row]) -> set[tuple[str, int]]:
    """(label, column) of the cells that show the lowest value, in columns where the rows differ."""
    marked: set[tuple[str, int]] = set()
    for column in range(BEST_OF):
        lowest = min(rows, key=lambda row: _keys(row)[column])
        shown = {row.label: cells(row)[column] for row in rows}
        if len(set(shown.values())) > 1:
            marked |= {(label, column) for label, text in shown.items() if text == shown[lowest.label]}
    return marked


def _keys(row: Row) -> tuple[float, ...]:
    m = row.measures
    latency = m.latency_s
    return (
        m.cold_share, latency.p50, latency.p95, latency.p99, m.wasted_gib_s, m.dollars, m.starts,
    )  # fmt: skip


def cells(row: Row) -> tuple[str, ...]:
    m = row.measures
    latency = m.latency_s
    return (
        f"{m.cold_share:.2%}", show_seconds(latency.p50), show_seconds(latency.p95), show_seconds(latency.p99),
        f"{_digits(m.wasted_gib_s / 3600)} GiBh", _dollars(m.dollars), f"{m.starts:,}",
    )  # fmt: skip


def _dollars(value: float) -> str:
    return f"${_digits(value)}"


def _digits(value: float) -> str:
    """Three digits, but whole numbers in full."""
    return f"{value:,.0f}" if value >= 100.0 else f"{value:.3g}"
