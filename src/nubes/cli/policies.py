"""`nubes policy`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nubes.cli import output
from nubes.cli.groups import Group
from nubes.cli.options import Data, Json, connect, settle
from nubes.kernel.errors import Unavailable

group = typer.Typer(
    cls=Group, help="Policies: which there are, which decide now, and switching them.", no_args_is_help=True
)


@group.command("set")
def set_(
    seam: Annotated[
        str, typer.Argument(metavar="SEAM", help="What it decides on: one of those that `nubes policy list` shows.")
    ],
    policy: Annotated[
        str, typer.Argument(metavar="POLICY", help="A name, or a name with arguments: fixed-window(keep=10m).")
    ],
    function: Annotated[
        str, typer.Option(metavar="APP/FUNCTION", help="Only for this function; keep-alive alone.")
    ] = "",
    data: Data = None,
    json: Json = False,
) -> None:
    """Switch a policy on the running control plane."""
    from nubes.kernel.policy import make

    make(seam, policy)
    answer = connect(data).ask("set_policy", seam=seam, policy=policy, function=function)
    if json:
        output.as_json(answer)
    else:
        print(f"From now on {policy} decides on {seam}{f' of {function}' if function else ''}.")


@group.command("list")
def list_(
    seam: Annotated[str, typer.Argument(metavar="[SEAM]", help="Only of this seam.")] = "",
    data: Data = None,
    json: Json = False,
) -> None:
    """Every policy there is; those that decide now are marked."""
    from nubes.kernel.policy import SEAMS, find, policies

    if seam:
        load_first = list(policies(seam))
        if not load_first:
            find(seam, "")  # says which seams there are
    live = _live(data)
    rows: list[dict[str, Any]] = [
        {
            "seam": cls.seam, "policy": cls.name, "default": SEAMS[cls.seam].default.partition("(")[0] == cls.name,
            "live": live.get(cls.seam, "").partition("(")[0] == cls.name,
            "about": (cls.__doc__ or "").strip().partition("\n")[0],
            "paper": {"id": cls.paper.id, "title": cls.paper.title, "venue": cls.paper.venue} if cls.paper else None,
        }
        for cls in policies(seam or None)
    ]  # fmt: skip
    if json:
        output.as_json(rows)
        return
    shown = [(r["seam"], r["policy"], _mark(r, bool(live)), r["about"]) for r in rows]
    output.table("", ("seam", "policy", "", "about"), shown)


def _mark(row: dict[str, Any], known: bool) -> str:
    """What decides now, or what would if a control plane were started."""
    return "live" if row["live"] else "default" if row["default"] and not known else ""


def _live(data: str | None) -> dict[str, str]:
    settle(data=data)
    try:
        policies: dict[str, str] = connect(data).ask("status")["policies"]
        return policies
    except Unavailable:
        return {}
