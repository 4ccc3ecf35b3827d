"""`nubes chaos`: a cloud of its own is broken on purpose, and what was promised is compared with what was kept."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nubes.cli import output
from nubes.cli.errors import Exit
from nubes.cli.options import Json
from nubes.kernel.errors import UsageError

if TYPE_CHECKING:
    from nubes.chaos.run import Report

SHOWN = 20  # findings of one kind


def chaos(
    minutes: Annotated[float, typer.Option(min=0.0, help="For how long.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the schedule of faults, and of the clients.")] = 0,
    machines: Annotated[int, typer.Option(min=0, help="Agents that join, each on a network of its own.")] = 0,
    clients: Annotated[int, typer.Option(min=1, help="Processes that make calls.")] = 3,
    rate: Annotated[float, typer.Option(min=0.0, help="Faults a second, on average.")] = 0.5,
    faults: Annotated[
        str, typer.Option(help='Kinds of faults: "a,b" for these, "-a,-b" for all but these.', show_default="all")
    ] = "",
    plant: Annotated[
        str, typer.Option(help="Lose something on purpose before the audit, to see it noticed.", show_default="nothing")
    ] = "",
    database: Annotated[str, typer.Option(help="As for `nubes up`.", show_default="the folder")] = "",
    objects: Annotated[str, typer.Option(help="As for `nubes up`.", show_default="the folder")] = "",
    folder: Annotated[
        Path | None, typer.Option(help="A new folder, which is kept.", show_default="one that is kept if need be")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the kinds of faults and losses, and do nothing.")] = False,
    json: Json = False,
) -> None:
    """Break a cloud made for it, under load, and audit what its callers were told. Ctrl-C ends the faults early."""
    from nubes.chaos.cloud import Plan
    from nubes.chaos.run import run

    if list_:
        _list(json)
        return
    if folder is not None and folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty.", "Name a new folder.")
    place = (folder or Path(tempfile.mkdtemp(prefix="nubes-chaos-"))).absolute()

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    disk_bytes = (1 << 30) + int(minutes / 60 * (2 << 30))
    plan = Plan(machines, clients, seed, database, objects, disk_bytes)
    report = run(place, plan, minutes * 60, rate, faults, plant, tell)
    if json:
        output.as_json(as_data(report, seed, str(place)))
    else:
        _show(report, seed)
    if folder is None and not report.findings:
        shutil.rmtree(place)
    elif not json:
        print(f"Everything is in {place}.")
    if report.findings:
        raise Exit(1)


def as_data(report: Report, seed: int, folder: str) -> dict[str, Any]:
    from nubes.chaos.audit import counts

    return {
        "seed": seed, "seconds": round(report.seconds, 1), "folder": folder, "planted": report.planted,
        "operations": counts(report.evidence), "faults": dict(report.faults), "not_possible": report.impossible,
        "executions": len(report.evidence.runs), "overlapping": report.overlapping,
        "records": len(report.evidence.log), "own_networks": report.isolated,
        "findings": [{"kind": one.kind, "what": one.what} for one in report.findings],
    }  # fmt: skip


def _show(report: Report, seed: int) -> None:
    from nubes.chaos.audit import RULES, counts

    kinds = counts(report.evidence)
    ends = sorted({end for ended in kinds.values() for end in ended if end != "ASKED"})
    output.table(
        f"Operations in {report.seconds:.0f} s, seed {seed}", ("operation", "asked", *map(str.lower, ends)),
        [(kind, ended["ASKED"], *(ended[end] or "" for end in ends)) for kind, ended in sorted(kinds.items())],
        right=("asked", *map(str.lower, ends)),
    )  # fmt: skip
    print()
    output.table("Faults", ("fault", "times"), sorted(report.faults.items()), right=("times",))
    if report.impossible:
        reasons: dict[str, list[str]] = {}
        for line in report.impossible:
            kind, _, why = line.partition(": ")
            reasons.setdefault(why, []).append(kind)
        for why, names in reasons.items():
            print(f"Not here, since {why}: {', '.join(names)}.")
    print(
        f"\n{len(report.evidence.runs)} executions, {len(report.evidence.log)} calls in the log; "
        f"{report.overlapping} executions began while another of the same call went on (allowed: at least once)."
    )
    if report.planted:
        print(f"Planted: {report.planted}.")
    if not report.findings:
        print("Nothing was lost, and nobody was told anything else than the log says.")
        return
    print()
    seen: Counter[str] = Counter()
    for one in report.findings:
        seen[one.kind] += 1
        if seen[one.kind] == 1:
            print(f"{one.kind}: {RULES[one.kind]}")
        if seen[one.kind] <= SHOWN:
            print(f"  {one.what}")
    print(f"\n{len(report.findings)} findings: " + ", ".join(f"{count} {kind}" for kind, count in seen.items()) + ".")


def _list(json: bool) -> None:
    from nubes.chaos.plants import EARLY, PLANTS
    from nubes.chaos.schedule import FAULTS

    faults = {kind: about for kind, (_, _, about) in FAULTS.items()}
    losses = {name: (do.__doc__ or "").strip() for name, (do, _) in PLANTS.items()}
    losses[EARLY] = "The control plane answers before it has written anything down."
    if json:
        output.as_json({"faults": faults, "plants": losses})
        return
    output.table("Faults", ("fault", "what it is"), faults.items())
    print()
    output.table("Losses to plant", ("loss", "what it is"), losses.items())
