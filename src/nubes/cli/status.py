"""`nubes ps`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nubes import ids
from nubes.cli import output
from nubes.cli.options import Data, Json, connect
from nubes.kernel.units import show_bytes, show_seconds

HOUR_S = 3600.0
NUMBERS = ("version", "functions", "busy", "idle", "starting", "queued", "calls", "forks", "memory", "took", "age")
SHOWN = 20  # rows of instances and calls that people get to see


def ps(
    data: Data = None,
    json: Json = False,
    everything: Annotated[
        bool, typer.Option("-a", "--all", help=f"Show all instances and calls, not just {SHOWN}.")
    ] = False,
) -> None:
    """Show what runs: apps, functions, instances, parents in the process tree, calls, and what it costs."""
    status: dict[str, Any] = connect(data).ask("status")
    status["dollars_per_hour"] = dollars_per_hour(status)
    for call in status["calls"]:
        call["id"] = ids.show(call["id"])
    for instance in status["instances"]:
        instance["calls"] = [ids.show(call) for call in instance["calls"]]
    if json:
        output.as_json(status)
    else:
        _show(status, None if everything else SHOWN)


def dollars_per_hour(status: dict[str, Any]) -> float:
    """What the memory that is loaded now would cost at a public cloud's list price."""
    from nubes.replay.measures import DOLLARS_PER_GIB_S

    held = status["memory_used_bytes"] + sum(parent["memory_bytes"] for parent in status["parents"])
    return float(held / 2**30 * DOLLARS_PER_GIB_S * HOUR_S)


def _show(status: dict[str, Any], most: int | None) -> None:
    policies = ", ".join(f"{seam} {text}" for seam, text in status["policies"].items())
    print(f"Process {status['pid']}, up {show_seconds(status['up_s'])}, on {status['folder']}")
    print(
        f"CPU {status['cpu_used']:g} of {status['cpu']:g}, memory {show_bytes(status['memory_used_bytes'])} of "
        f"{show_bytes(status['memory_bytes'])}, ${status['dollars_per_hour']:.4f} an hour at list price; {policies}"
    )
    for finding in (*status["findings"], *filter(None, [status["full"]])):
        print(f"! {finding}")
    if not status["apps"]:
        print("No app is deployed. Next: `nubes deploy app.py`.")
        return
    apps = [
        (name, a["version"], len(a["functions"]), "ephemeral" if a["ephemeral"] else "deployed")
        for name, a in status["apps"].items()
    ]
    _section("Apps", ("app", "version", "functions", "kind"), apps, None)
    counts = ("busy", "idle", "starting", "queued", "calls")
    functions = [
        (_name(f), *(f[count] for count in counts), _took(f["exec_s"]), _took(f["cold_start_s"]), f["keep_alive"])
        for f in status["functions"]
    ]
    _section("Functions", ("function", *counts, "run time", "cold start", "keep-alive"), functions, None)
    instances = [
        (i["id"], _name(i, "function"), i["state"], i["pid"] or "", i["uses"], _took(i["age_s"]), i["node"] or "none")
        for i in status["instances"]
    ]
    _section("Instances", ("id", "function", "state", "pid", "calls so far", "age", "parent"), instances, most)
    parents = [
        (n["id"], n["parent"] or "none", "ready" if n["ready"] else "growing", n["pid"] or "", _holds(n), n["forks"],
         show_bytes(n["memory_bytes"]), _took(n["grow_s"]))
        for n in status["parents"]
    ]  # fmt: skip
    _section("Parents", ("id", "parent", "state", "pid", "holds", "forks", "memory", "took"), parents, most)
    calls = [
        (c["id"], _name(c, "function"), c["state"], _took(c["age_s"]), c["attempt"], "yes" if c["durable"] else "no")
        for c in status["calls"]
    ]
    _section("Calls", ("call", "function", "state", "age", "attempt", "kept"), calls, most)


def _name(row: dict[str, Any], key: str = "name") -> str:
    """A function's name without the parameters of a class instance."""
    name: str = row[key]
    return name.partition("#")[0]


def _holds(parent: dict[str, Any]) -> str:
    return " ".join([*parent["imports"], *filter(None, [parent["function"]])]) or "interpreter"


def _section(title: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]], most: int | None) -> None:
    if not rows:
        return
    print()
    output.table(title, columns, rows[:most], right=NUMBERS)
    if most is not None and len(rows) > most:
        print(f"... and {len(rows) - most} more; `nubes ps --all` shows them.")


def _took(seconds: float) -> str:
    return show_seconds(seconds) if seconds else ""
