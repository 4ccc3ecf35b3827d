"""A replay of LLM requests as one page, in the look of every replay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from nubes.kernel.units import show_seconds
from nubes.replay.charts import Series, linear, logarithmic, plane
from nubes.replay.llm.report import Report, Row
from nubes.replay.llm.terminal import (
    TIMES,
    TIMES_MEANING,
    WORK_MEANING,
    Cell,
    about,
    best_cells,
    gap_text,
    marks,
    models,
    order_lines,
    times,
    work,
    work_columns,
)
from nubes.replay.page import distribution, figure, front, grid, legend, page


def html(report: Report) -> str:
    """The whole report: both tables, the distributions of TTFT and TPOT, price against what users wait for."""
    rows, gap = report.rows, report.gap
    parts = [
        f"<header><p class='kicker'>replay of an LLM</p><h1>{escape(report.name)}</h1>"
        f"<p class='facts'>{escape(about(report))}</p><p class='source'>{escape(report.source)}</p>"
        + "".join(f"<p class='source'>{escape(model)}</p>" for model in models(report))
        + "</header>"
    ]
    if gap is not None:
        parts.append(f"<p class='gap'><strong>How far to trust this.</strong> {escape(gap_text(gap))}</p>")
    parts += [
        _table(rows, TIMES, times, [True] * len(TIMES), TIMES_MEANING),
        _table(rows, work_columns(report), work, marks(report), WORK_MEANING),
        _order(report),
        legend([row.label for row in rows], gap is not None),
        distribution(
            "Time to first token",
            "Share of requests that had their first token within a time. The upper part is stretched.",
            [(row.label, row.ttft_curve) for row in rows],
            gap.ttft_curve if gap else None,
            report.requests,
            "; ".join(f"{row.label}: median {show_seconds(row.measures.ttft_s.p50)}" for row in rows),
            "requests",
        ),
        distribution(
            "Time per output token",
            "Share of requests whose mean time between tokens was at most that.",
            [(row.label, row.tpot_curve) for row in rows],
            gap.tpot_curve if gap else None,
            report.requests,
            "; ".join(f"{row.label}: median {show_seconds(row.measures.tpot_s.p50)}" for row in rows),
            "requests",
        ),
        _tradeoff(rows),
    ]
    if report.slo is not None and len({row.hourly for row in rows}) > 1:
        parts.append(_price(rows, report))
    return page(f"replay of {report.name}", "".join(parts))


def _table(
    rows: Sequence[Row], columns: Sequence[str], cells: Callable[[Row], list[Cell]], marked: Sequence[bool], text: str
) -> str:
    shown = [cells(row) for row in rows]
    best = best_cells(shown, marked)
    body = [
        (row.label, [(text, (number, at) in best) for at, (text, _) in enumerate(found)])
        for number, (row, found) in enumerate(zip(rows, shown, strict=True))
    ]
    return grid("policy", columns, body, text)


def _order(report: Report) -> str:
    if len(report.rows) < 2:
        return ""
    lines = "".join(f"<li>{escape(line)}</li>" for line in order_lines(report))
    return f"<ul class='order'>{lines}</ul>"


def _tradeoff(rows: Sequence[Row]) -> str:
    """What a first token that comes early costs those that are under way."""
    points = [Series(r.label, [(r.measures.ttft_s.p99 * 1e3, r.measures.tpot_s.p99 * 1e3)]) for r in rows]
    return figure(
        "First tokens against all others",
        "99th percentiles. Left: first tokens come early. Down: tokens come fast. On the line, no other is better in "
        "both.",
        plane(
            "TTFT against TPOT",
            "; ".join(f"{s.label}: {s.points[0][0]:.0f} ms, {s.points[0][1]:.1f} ms" for s in points),
            logarithmic("TTFT p99, ms", [s.points[0][0] for s in points], lambda v: f"{v:g}"),
            linear("TPOT p99, ms", [s.points[0][1] for s in points], lambda v: f"{v:g}"),
            points,
            front([s.points[0] for s in points]),
        ),
    )


def _price(rows: Sequence[Row], report: Report) -> str:
    """What it costs to keep the objective."""
    points = [Series(r.label, [(r.hourly, (1.0 - (r.measures.attained or 0.0)) * 100.0)]) for r in rows]
    return figure(
        "What keeping the objective costs",
        f"Requests that missed {report.slo}, against dollars an hour. On the line, no other is better in both.",
        plane(
            "missed against dollars",
            "; ".join(f"{s.label}: ${s.points[0][0]:.3g} an hour, {s.points[0][1]:.2g} % missed" for s in points),
            linear("dollars an hour", [s.points[0][0] for s in points], lambda v: f"{v:g}"),
            linear("missed, % of requests", [s.points[0][1] for s in points], lambda v: f"{v:g}"),
            points,
            front([s.points[0] for s in points]),
        ),
    )
