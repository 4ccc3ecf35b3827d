"""`nubes join` and `nubes machine`."""

from __future__ import annotations

import os
import socket
from math import inf
from pathlib import Path
from typing import Annotated, Any

import typer

from nubes.cli import output
from nubes.cli.groups import Group
from nubes.cli.options import Data, Json, connect, folder
from nubes.kernel.errors import UsageError
from nubes.kernel.units import seconds, show_bytes, size_bytes

group = typer.Typer(cls=Group, help="Machines: which there are, and taking one out.", no_args_is_help=True)

Machine = Annotated[int, typer.Argument(metavar="MACHINE", help="Its number, as `nubes machine list` shows it.")]


@group.command("list")
def list_(data: Data = None, json: Json = False) -> None:
    """Show the machines, what they give and what is in use."""
    machines = connect(data).ask("status")["machines"]
    if json:
        output.as_json(machines)
        return
    heads = ("machine", "name", "zone", "instances", "CPU", "memory", "state")
    output.table("", heads, (
        (
            str(m["id"]), m["name"], m["zone"] or "-", str(m["instances"]), f"{m['cpu_used']:g} of {m['cpu']:g}",
            f"{show_bytes(m['memory_used_bytes'])} of {show_bytes(m['memory_bytes'])}", _state(m),
        )
        for m in machines
    ))  # fmt: skip


def _state(machine: dict[str, Any]) -> str:
    if machine["draining"]:
        kept = f", kept by {' and '.join(machine['kept_by'])}" if machine["kept_by"] else ""
        return f"draining{kept}" if machine["instances"] else "drained"
    return "ready" if machine["connected"] else "out of reach"


@group.command()
def drain(
    machine: Machine,
    undo: Annotated[bool, typer.Option("--undo", help="It takes calls again.")] = False,
    within: Annotated[
        str, typer.Option(metavar="TIME", help='After so long no function\'s policy keeps instances there: "10m".')
    ] = "",
    data: Data = None,
    json: Json = False,
) -> None:
    """Let a machine finish what it runs and give it nothing new; what stood ready there stands ready elsewhere."""
    within_s = seconds(within, "within") if within else inf
    answer = connect(data).ask("drain", machine=machine, undo=undo, within_s=within_s)
    if json:
        output.as_json(answer)
    elif undo:
        print(f"Machine {machine} takes calls again.")
    else:
        print(f"Machine {machine} takes nothing new. `nubes machine list` says when it is drained, or who keeps it.")


def join(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where `nubes up --agents` listens.")],
    token: Annotated[
        Path | None, typer.Option(help="A copy of the file `token` of its data folder; or set NUBES_TOKEN.")
    ] = None,
    name: Annotated[str, typer.Option(help="The machine's name.", show_default="its host name")] = "",
    zone: Annotated[str, typer.Option(help="What fails together with it, e.g. its rack.")] = "",
    cpu: Annotated[float | None, typer.Option(help="CPU cores to give out.", show_default="all")] = None,
    memory: Annotated[str | None, typer.Option(help='Memory to give, e.g. "8GiB".', show_default="most of it")] = None,
    data: Data = None,
) -> None:
    """Let this machine run instances for a control plane elsewhere, until Ctrl-C: then it drains, and leaves."""
    from nubes.drivers.remote.serving import serve

    secret = token.read_text().strip() if token is not None else os.environ.pop("NUBES_TOKEN", "")
    if not secret:
        raise UsageError("The control plane's token is needed.", "Copy its file `token` here and name it with --token.")
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise UsageError(f"{address!r} is no address.", "Write HOST:PORT, as given to `nubes up --agents`.")
    serve(
        folder(data) / "agent", (host.strip("[]"), int(port)), secret, name or socket.gethostname(), zone, cpu or 0.0,
        size_bytes(memory, "memory") if memory else 0,
    )  # fmt: skip
