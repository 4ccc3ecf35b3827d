"""`nubes coldstart`: what cold starts are made of, and what would spare them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from nubes import ids
from nubes.cli import output
from nubes.cli.groups import Group
from nubes.cli.options import Data, Json, folder
from nubes.kernel.errors import UsageError
from nubes.kernel.units import show_seconds

if TYPE_CHECKING:
    from nubes.replay.advice import Advice
    from nubes.replay.ledger import Ledger

group = typer.Typer(
    cls=Group, help="Cold starts: what they are made of, and what would spare them.", no_args_is_help=True
)


@group.callback()
def coldstart() -> None:
    """Keeps `report` a word of its own."""


@group.command()
def report(
    data: Data = None,
    json: Json = False,
    starts: Annotated[bool, typer.Option("--starts", help="Every single start, too.")] = False,
) -> None:
    """Split every cold start of the recorded run into its parts, and say what would save most."""
    from nubes.replay.advice import advice
    from nubes.replay.ledger import ledger, totals

    where = folder(data)
    if not (where / "log").is_dir():
        raise UsageError(f"{where} holds no log.", "Name the data folder of a nubes that ran, with --data.")
    made = ledger(where)
    advised = advice(made)
    if json:
        answer: dict[str, Any] = {
            "seconds": made.seconds, "policies": made.policies, "totals": totals(made.functions),
            "functions": made.functions, "advice": advised,
        }  # fmt: skip
        if starts:
            answer["starts"] = _starts(made)
        output.as_json(msgspec.to_builtins(answer))
        return
    _show_ledger(made)
    if starts:
        _show_starts(_starts(made))
    if advised:
        _show_advice(advised)


def _starts(made: Ledger) -> list[dict[str, Any]]:
    return [
        {"function": s.function, "call": ids.show(s.call), "source": s.source, "wall_s": s.wall_s, "parts": s.parts()}
        for s in made.starts
        if s.complete
    ]


def _show_ledger(made: Ledger) -> None:
    from nubes.replay.ledger import PARTS

    cold = sum(f.cold for f in made.functions)
    calls = sum(f.calls for f in made.functions)
    print(
        f"{cold} of {calls} calls waited for a new instance, in {show_seconds(made.seconds)}. Means over those calls:"
    )
    rows = []
    for f in made.functions:
        means = [show_seconds(s / f.cold) if f.cold else "" for s in (*(f.parts[p] for p in PARTS), f.wall_s)]
        rows.append((f.function, f.cold, f.ahead, *means, "" if f.utility is None else f"{f.utility:.3g}"))
    numbers = ("cold", "ahead", *PARTS, "wall", "utility")
    output.table("", ("function", *numbers), rows, right=numbers)
    print(
        "ahead: instances that no call waited for. utility: (lifetime - last idle time) / start time, the median; "
        "below 1, starting cost more than it gave."
    )


def _show_starts(starts: list[dict[str, Any]]) -> None:
    from nubes.replay.ledger import PARTS

    rows = [
        (
            s["call"],
            s["function"],
            s["source"],
            *(show_seconds(s["parts"][p]) for p in PARTS),
            show_seconds(s["wall_s"]),
        )
        for s in starts
    ]
    print()
    output.table("Starts", ("call", "function", "from", *PARTS, "wall"), rows, right=(*PARTS, "wall"))


def _show_advice(advised: list[Advice]) -> None:
    rows = [
        (a.function, show_seconds(a.saves_s), f"{a.share:.0%}", a.starts, f"${a.dollars_per_day:.4f}", a.change, a.what)
        for a in advised
    ]
    columns = ("function", "saves", "share", "starts", "a day", "change", "why")
    print()
    output.table("What would have saved most (savings of one function overlap)", columns, rows, right=columns[1:5])
