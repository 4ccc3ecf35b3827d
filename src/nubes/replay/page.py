"""A report as one page: its own style and a few lines of script inside, nothing from the network."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from math import log10
from string import Template

from nubes.kernel.units import show_seconds
from nubes.replay.charts import (
    BOTTOM,
    COLOURS,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Point,
    Series,
    line_chart,
    linear,
    logarithmic,
    nines,
    plane,
)
from nubes.replay.measures import NINES, POINTS
from nubes.replay.report import Report, Row
from nubes.replay.terminal import COLUMNS, MEANING, about, best, cells, gap_text, order_lines

MEASURED = "measured live"
SHORTEST_S = 1e-4  # shorter times are at the left edge


def html(report: Report) -> str:
    """The whole report: table, latency distributions, cold starts against memory, cold starts function by function."""
    rows = report.rows
    parts = [
        f"<header><p class='kicker'>replay</p><h1>{escape(report.name)}</h1><p class='facts'>{about(report)}</p>"
        f"<p class='source'>{escape(report.source)}</p></header>",
    ]
    if report.gap is not None:
        parts.append(f"<p class='gap'><strong>How far to trust this.</strong> {escape(gap_text(report.gap))}</p>")
    parts += [_table(rows), _order(report), legend([row.label for row in rows], report.gap is not None)]
    gap = report.gap
    parts += [
        distribution(
            "Latency, from arrival to answer",
            "Share of calls that had their answer within a time. The upper part is stretched: there policies differ.",
            [(row.label, row.latency_curve) for row in rows],
            gap.latency_curve if gap else None,
            report.calls,
            _describe(rows, "median", lambda r: show_seconds(r.measures.latency_s.p50)),
        ),
        distribution(
            "Waiting for an instance",
            "Share of calls that got an instance within a time: latency without the calls' own work.",
            [(row.label, row.wait_curve) for row in rows],
            gap.wait_curve if gap else None,
            report.calls,
            _describe(rows, "99th percentile", lambda r: show_seconds(r.measures.wait_s.p99)),
        ),
    ]
    points = [Series(r.label, [(r.measures.wasted_gib_s / 3600, r.measures.cold_share * 100)]) for r in rows]
    parts.append(
        figure(
            "What cold starts cost in memory",
            "Down: fewer cold starts. Left: less memory loaded without work. On the line, no other is better in both.",
            plane(
                "Cold starts against wasted memory-time",
                _describe(rows, "cold", lambda r: f"{r.measures.cold_share:.2%}"),
                linear("loaded without executing, GiB h", [s.points[0][0] for s in points], lambda v: f"{v:,.4g}"),
                linear("cold starts, % of calls", [s.points[0][1] for s in points], lambda v: f"{v:.3g}"),
                points,
                front([s.points[0] for s in points]),
            ),
        )
    )
    ratios = [Series(r.label, [(i, v * 100) for i, v in enumerate(r.function_cold_curve)]) for r in rows]
    parts.append(
        figure(
            "Cold starts, function by function",
            "Functions from the least to the most cold: rarely called ones, which an average hides, are on the right.",
            line_chart(
                "Cold-start ratio of each function",
                _describe(rows, "three quarters of functions below", lambda r: f"{r.measures.function_cold[2]:.0%}"),
                linear("functions, %", [92.6], lambda v: f"{v:g}"),
                linear("cold starts, % of the function's calls", [92.6], lambda v: f"{v:g}"),
                ratios,
                None,
            ),
        )
    )
    return page(f"replay of {report.name}", "".join(parts))


def distribution(
    title: str,
    text: str,
    curves: Sequence[tuple[str, Sequence[float]]],
    measured: Sequence[float] | None,
    calls: int,
    words: str,
    of: str = "calls",
) -> str:
    """Distributions of times from their quantiles; of `calls` values each. `measured` lies below the others."""
    series = [Series(label, _nines_of(curve, calls)) for label, curve in curves]
    under = Series(MEASURED, _nines_of(measured, calls)) if measured is not None else None
    shown = [*series, under] if under else series
    x = logarithmic("time", [x for s in shown for x, _ in s.points if x >= SHORTEST_S], show_seconds)
    y = nines(f"share of {of}", max([n for s in shown for _, n in s.points], default=1.0))
    return figure(title, text, line_chart(title, words, x, y, series, under), shown)


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other point is below in one coordinate without being above in the other, from left to right."""
    kept: list[Point] = []
    for point in sorted(points):
        if not kept or point[1] < kept[-1][1]:
            kept.append(point)
    return kept


def page(title: str, body: str) -> str:
    """The frame of every page."""
    assets = files("nubes.replay") / "assets"
    style, script = ((assets / name).read_text("utf-8") for name in ("page.css", "page.js"))
    return _PAGE.substitute(title=escape(title), style=style, body=body, script=script)


def _nines_of(curve: Sequence[float], calls: int) -> list[Point]:
    """A latency curve as points (seconds, nines), as far into the tail as there are calls for."""
    largest = log10(max(calls, 10))
    steps = [NINES * i / (POINTS - 1) for i in range(len(curve))]
    return [(value, step) for value, step in zip(curve, steps, strict=True) if step <= largest]


def _table(rows: Sequence[Row]) -> str:
    marked = best(rows)
    body = [(row.label, [(text, (row.label, i) in marked) for i, text in enumerate(cells(row))]) for row in rows]
    return grid("policy", COLUMNS, body, f"{MEANING} The best of a column is marked.")


def grid(
    first: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[tuple[str, bool]]]], caption: str
) -> str:
    """A table: a row for each (label, cells), a cell being its text and whether it is the best of its column."""
    head = "".join(f"<th scope='col'>{escape(column)}</th>" for column in (first, *columns))
    body = []
    for index, (label, shown) in enumerate(rows):
        found = "".join(f"<td{' class=best' if mark else ''}>{escape(text)}</td>" for text, mark in shown)
        swatch = f"<i class='swatch c{index % COLOURS}'></i>"
        body.append(f"<tr data-series='{index}'><th scope='row'>{swatch}{escape(label)}</th>{found}</tr>")
    return (
        f"<div class='wide'><table><caption>{escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _order(report: Report) -> str:
    if len(report.rows) < 2:
        return ""
    lines = "".join(f"<li>{escape(line)}</li>" for line in order_lines(report))
    return f"<ul class='order'>{lines}</ul>"


def legend(labels: Sequence[str], measured: bool = False) -> str:
    """Buttons that light up one series in all charts."""
    buttons = "".join(
        f"<button type='button' data-series='{i}' aria-pressed='false'><i class='swatch c{i % COLOURS}'></i>"
        f"{escape(label)}</button>"
        for i, label in enumerate(labels)
    )
    under = f"<span><i class='swatch'></i>{MEASURED}</span>" if measured else ""
    return f"<nav class='legend' aria-label='Highlight a policy in all charts'>{buttons}{under}</nav>"


def figure(title: str, text: str, svg: str, series: Sequence[Series] = ()) -> str:
    """A chart with its heading; with `series` it can be read off with the pointer."""
    data = [{"label": s.label, "points": [[round(x, 7), round(y, 4)] for x, y in s.points]} for s in series]
    plot = f' data-plot="{LEFT} {WIDTH - RIGHT} {TOP} {HEIGHT - BOTTOM}"' if data else ""
    embedded = f"<script type='application/json'>{_json(data)}</script>" if data else ""
    return (
        f"<figure{plot}><figcaption><h2>{escape(title)}</h2><p>{escape(text)}</p></figcaption>{svg}{embedded}</figure>"
    )


def _json(data: object) -> str:
    return json.dumps(data, separators=(",", ":")).replace("</", "<\\/")


def _describe(rows: Sequence[Row], what: str, show: Callable[[Row], str]) -> str:
    """A chart in words."""
    return "; ".join(f"{row.label}: {what} {show(row)}" for row in rows)


_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>nubes: $title</title><style>$style</style></head>
<body><main>$body</main><footer>Made by nubes. Everything on this page is in this file.</footer>
<script>$script</script></body></html>
""")
