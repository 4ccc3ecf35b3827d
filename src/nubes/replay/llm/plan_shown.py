"""A plan in the terminal, and as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from nubes.kernel.units import show_seconds
from nubes.replay.charts import Series, line_chart, linear, logarithmic, plane
from nubes.replay.llm.plan import Lost, Plan, Trial, frontier
from nubes.replay.page import figure, grid, page

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

COLUMNS = ("replicas", "devices", "$/hour", "price", "met", "TTFT p90", "TPOT p90", "busy")
MEANING = (
    "price: of a million tokens, prompts and answers together. met: requests within the objective. busy: share of the "
    "time in steps."
)
SHOWN = 12  # rows of a table in the terminal
BAR = 40


def table(plan: Plan) -> Group:
    """The answer, what else keeps the objective, why the others lost, and the frontier."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [
        Text.assemble((f"{plan.model} for {plan.name}", "bold"), f"  {about(plan)}"),
        Text(plan.source, style="dim"),
        Text(),
        Text(answer(plan), style="bold green" if plan.met else "yellow"),
        Text(),
    ]
    if plan.met:
        made = Table(box=None, pad_edge=False, header_style="dim")
        made.add_column("configuration", overflow="fold")
        for column in COLUMNS:
            made.add_column(column, justify="right", no_wrap=True)
        for trial in plan.met[:SHOWN]:
            made.add_row(trial.label, *cells(trial))
        more = f"{len(plan.met) - SHOWN} more keep it and cost more, or as much. " if len(plan.met) > SHOWN else ""
        parts += [made, Text(more + MEANING, style="dim"), Text()]
    parts += [Text("Left out, or lost:"), *(Text(f"  {line}", style="dim") for line in reasons(plan)), Text()]
    parts += [Text("What more dollars bring (nothing that was tried is cheaper and better):"), *_bars(plan)]
    return Group(*parts)


def about(plan: Plan) -> str:
    return (
        f"{plan.requests:,} requests at {plan.rate:.3g} a second; {plan.attainment:.0%} within {plan.slo}; "
        f"{len(plan.tried)} simulations"
    )


def answer(plan: Plan) -> str:
    """The cheapest, in a sentence."""
    if not plan.met:
        nearest = max(plan.tried, key=lambda trial: trial.attained, default=None)
        if nearest is None:
            return "Nothing that was measured can keep the objective."
        return f"Nothing keeps the objective; {_named(nearest)} comes nearest with {nearest.attained:.1%}."
    best = plan.met[0]
    price = best.measures.dollars_per_million
    return f"{_named(best)}: ${best.hourly:,.2f} an hour, ${price:.3g} a million tokens, {best.attained:.1%} in time."


def _named(trial: Trial) -> str:
    return f"{trial.replicas} x {trial.label}"


def cells(trial: Trial) -> tuple[str, ...]:
    m = trial.measures
    return (
        f"{trial.replicas}", f"{trial.devices}", f"${trial.hourly:,.2f}", f"${m.dollars_per_million:.3g}",
        f"{trial.attained:.1%}", show_seconds(m.ttft_s.p90), show_seconds(m.tpot_s.p90), f"{m.busy:.0%}",
    )  # fmt: skip


def reasons(plan: Plan) -> list[str]:
    """What lost, by reason: devices alone where all that was asked of them lost for the same one."""
    asked = Counter(one.hardware.gpu for one in plan.lost)
    for trial in plan.met:
        asked[trial.label.split()[0]] = 0  # not all of it lost
    by_reason: dict[str, dict[str, list[Lost]]] = {}
    for one in plan.lost:
        by_reason.setdefault(one.reason, {}).setdefault(one.hardware.gpu, []).append(one)
    lines = []
    for reason, of in by_reason.items():
        named = [gpu if asked[gpu] == len(lost) else _ways(gpu, lost) for gpu, lost in of.items()]
        lines.append(f"{'; '.join(named)}: {reason.rstrip('.')}.")
    return lines


def _ways(gpu: str, lost: Sequence[Lost]) -> str:
    """Ways to use a device, as tensor x pipeline; a policies are named where there is one way only."""
    ways = list({f"{one.hardware.tp}x{one.hardware.pp}": None for one in lost})
    if len(ways) == 1:
        return f"{lost[0].hardware} {', '.join(one.batching for one in lost)}".rstrip()
    return f"{gpu} tp x pp = {', '.join(ways)}"


def _bars(plan: Plan) -> list[RenderableType]:
    from rich.text import Text

    found = frontier(plan)
    width = max((len(f"${trial.hourly:,.2f}") for trial in found), default=0)
    lines: list[RenderableType] = []
    for trial in found:
        filled = round(trial.attained * BAR)
        style = "green" if trial.attained >= plan.attainment else "yellow"
        price = f"${trial.hourly:,.2f}".rjust(width)
        bar = Text("█" * filled, style=style) + Text("░" * (BAR - filled), style="dim")
        lines.append(Text(f"  {price}  ") + bar + Text(f" {trial.attained:6.1%}  {_named(trial)}"))
    return lines


def html(plans: Sequence[Plan]) -> str:
    """Plans for one or more rates: each with its table and its frontier, and what a rate costs."""
    first = plans[0]
    parts = [
        f"<header><p class='kicker'>plan</p><h1>{escape(first.model)} for {escape(first.name)}</h1>"
        f"<p class='source'>{escape(first.source)}</p></header>"
    ]
    if len([plan for plan in plans if plan.met]) > 1:
        parts.append(_rates([plan for plan in plans if plan.met]))
    for plan in plans:
        parts.append(
            f"<p class='facts'>{escape(about(plan))}</p><p class='gap'><strong>{escape(answer(plan))}</strong></p>"
        )
        if plan.met:
            rows = [
                (trial.label, [(text, index == 0) for text in cells(trial)]) for index, trial in enumerate(plan.met)
            ]
            parts.append(grid("configuration", COLUMNS, rows, MEANING))
        parts.append(_frontier(plan))
        lines = "".join(f"<li>{escape(line)}</li>" for line in reasons(plan))
        parts.append(f"<h2>Left out, or lost</h2><ul class='order'>{lines}</ul>")
    return page(f"plan for {first.name}", "".join(parts))


def _frontier(plan: Plan) -> str:
    best = frontier(plan)
    points = [Series(_named(trial), [(trial.hourly, trial.attained * 100.0)]) for trial in best]
    return figure(
        "What more dollars bring",
        f"Requests within {plan.slo}. Nothing that was tried is cheaper and better than a point here.",
        plane(
            f"in time against dollars at {plan.rate:.3g} a second",
            "; ".join(f"{s.label}: ${s.points[0][0]:,.2f} an hour, {s.points[0][1]:.1f} %" for s in points),
            logarithmic("dollars an hour", [trial.hourly for trial in best], lambda v: f"{v:g}"),
            linear("in time, % of requests", [92.6], lambda v: f"{v:g}"),
            points,
            [s.points[0] for s in points],
        ),
    )


def _rates(plans: Sequence[Plan]) -> str:
    """What serving at a rate costs."""
    points = sorted((plan.rate, plan.met[0].hourly) for plan in plans)
    series = [Series("the cheapest", points)]
    return figure(
        "What a rate costs",
        f"The cheapest configuration that keeps {plans[0].slo} for {plans[0].attainment:.0%} of the requests.",
        line_chart(
            "dollars against rate",
            "; ".join(f"{rate:.3g} a second: ${dollars:,.2f} an hour" for rate, dollars in points),
            linear("requests a second", [rate for rate, _ in points], lambda v: f"{v:g}"),
            linear("dollars an hour", [dollars for _, dollars in points], lambda v: f"{v:g}"),
            series,
            None,
        ),
    )
