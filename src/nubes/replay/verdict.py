"""A trial in the terminal and as a page."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from nubes.kernel.units import show_seconds
from nubes.replay.charts import intervals, ratios
from nubes.replay.page import figure, page
from nubes.replay.trial import COMPARED, Opponent, Ratio, Trial

if TYPE_CHECKING:
    from rich.console import Group

MEANING = (
    "Each cell: how many times the value of your policy theirs is, with its 95 % interval. Above 1, yours is better."
)


def trial_table(trial: Trial) -> Group:
    """A row for each policy on the seam, in units of the candidate's own values."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="dim")
    grid.add_column("policy", overflow="fold")
    for title, _, _ in COMPARED.values():
        grid.add_column(title, justify="right", no_wrap=True)
    grid.add_row(Text(trial.candidate, "bold"), *(Text(text, "bold") for text in own_values(trial)), end_section=True)
    for opponent in trial.opponents:
        cells = [Text(_cell(opponent, key), _style(opponent.ratios[key])) for key in COMPARED]
        grid.add_row(opponent.policy, *cells)
    return Group(
        Text.assemble((trial.candidate, "bold"), f" against {len(trial.opponents)} policies on {trial.seam}"),
        Text(setting(trial), "dim"),
        Text(),
        grid,
        Text(MEANING, "dim"),
        Text(),
        *(Text(line) for line in conclusions(trial)),
    )


def trial_html(trial: Trial) -> str:
    """The trial as one page."""
    parts = [
        f"<header><p class='kicker'>trial on {escape(trial.seam)}</p><h1>{escape(trial.candidate)}</h1>"
        f"<p class='facts'>against {len(trial.opponents)} policies</p>"
        f"<p class='source'>{escape(setting(trial))}</p></header>",
        f"<ul class='order'>{''.join(f'<li>{escape(line)}</li>' for line in conclusions(trial))}</ul>",
        _table(trial),
    ]
    for key, (title, _, _) in COMPARED.items():
        rows = [(trial.candidate, 1.0, 1.0, 1.0)]
        ranked = sorted(trial.opponents, key=lambda o: (o.ratios[key].middle, o.policy))
        rows += [(o.policy, o.ratios[key].low, o.ratios[key].middle, o.ratios[key].high) for o in ranked]
        words = "; ".join(f"{label}: {middle:.3g} times" for label, _, middle, _ in rows)
        axis = ratios(f"{title}, times that of {trial.candidate}", [v for _, *values in rows for v in values])
        parts.append(
            figure(
                title[0].upper() + title[1:],
                "Left of your policy is better than it.",
                intervals(title, words, axis, rows),
            )
        )
    return page(f"trial of {trial.candidate}", "".join(parts))


def setting(trial: Trial) -> str:
    """What it was tried on."""
    seeds = f"{len(trial.seeds)} seeds" if len(trial.seeds) > 1 else f"seed {trial.seeds[0]}"
    return f"Simulated over {', '.join(trial.workloads)}; {seeds}. Capacity: {trial.capacity}."


def conclusions(trial: Trial) -> list[str]:
    """Who is better and who is the same, measure by measure: only where the interval leaves no doubt."""
    lines = []
    ties = [opponent.policy for opponent in trial.opponents if opponent.tie]
    if ties:
        lines.append(f"Exactly the same, in every run: {', '.join(ties)}.")
    for key, (title, _, _) in COMPARED.items():
        beaten = [o.policy for o in trial.opponents if o.ratios[key].low > 1.0]
        beats = [o.policy for o in trial.opponents if o.ratios[key].high < 1.0]
        lines.append(
            f"{title}: better than {len(beaten)}, worse than {len(beats)}"
            + (f" ({', '.join(beats)})" if beats else "")
            + f", no clear difference from {len(trial.opponents) - len(beaten) - len(beats)}."
        )
    return lines


def own_values(trial: Trial) -> list[str]:
    """The candidate's own means, in the order of `COMPARED`."""
    m = trial.means
    return [
        f"{m['cold_share']:.2%}",
        show_seconds(m["wait"]),
        f"{m['wasted'] / 3600:,.1f} GiBh",
        f"${m['dollars']:.3g}",
    ]


def _cell(opponent: Opponent, key: str) -> str:
    ratio = opponent.ratios[key]
    if ratio.low == ratio.middle == ratio.high == 1.0:
        return "same"
    return f"{ratio.middle:.3g} ({ratio.low:.3g} to {ratio.high:.3g})"


def _style(ratio: Ratio) -> str:
    return "green" if ratio.low > 1.0 else "red" if ratio.high < 1.0 else ""


def _table(trial: Trial) -> str:
    head = "".join(
        f"<th scope='col'>{title}</th>" for title in ("policy", *(title for title, _, _ in COMPARED.values()))
    )
    own = "".join(f"<td><strong>{text}</strong></td>" for text in own_values(trial))
    rows = [f"<tr><th scope='row'>{escape(trial.candidate)}</th>{own}</tr>"]
    for o in trial.opponents:
        cells = "".join(f"<td class='{_style(o.ratios[key])}'>{_cell(o, key)}</td>" for key in COMPARED)
        rows.append(f"<tr><th scope='row'>{escape(o.policy)}</th>{cells}</tr>")
    return (
        f"<div class='wide'><table><caption>{MEANING}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
