"""`nubes logs`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from nubes import ids
from nubes.cli import output
from nubes.cli.options import Data, Json, folder
from nubes.kernel.errors import UsageError
from nubes.kernel.units import seconds

if TYPE_CHECKING:
    from nubes.drivers.local.logstore import Line


def logs(
    what: Annotated[str, typer.Argument(metavar="[APP|APP/FUNCTION|CALL]", help="Whose lines; all if left out.")] = "",
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as more is printed.")] = False,
    since: Annotated[
        str | None, typer.Option(help='Only lines since then: "2h" ago, or a time like 2026-01-31T12:00.')
    ] = None,
    tail: Annotated[int | None, typer.Option(min=0, help="Only the last so many lines.")] = None,
    search: Annotated[str, typer.Option(help="Only lines with this text in them.")] = "",
    timestamps: Annotated[bool, typer.Option("--timestamps", help="Show when each line was printed.")] = False,
    data: Data = None,
    json: Json = False,
) -> None:
    """Show what functions printed, also after the control plane has ended."""
    from nubes.drivers.local import logstore

    where = folder(data) / "logs"
    call = ids.parse(what) if what.startswith("fc-") else 0
    want = logstore.wanted("" if call else what, call, _since(since), search)
    lines: Iterable[Line] = logstore.follow(where, want, tail) if follow else logstore.read(where, want, tail)
    colour = output.colours()
    for line in lines:
        _show(line, timestamps, json, colour)
        if follow:
            sys.stdout.flush()


def _show(line: Line, timestamps: bool, json: bool, colour: bool) -> None:
    when = datetime.fromtimestamp(line.at).astimezone()
    if json:
        call = ids.show(line.call) if line.call else None
        output.as_json_line(
            {
                "at": when.isoformat(),
                "function": line.function,
                "call_id": call,
                "stream": line.stream,
                "text": line.text,
            }
        )
        return
    label = f"[{line.function.partition('/')[2] or line.function}]"
    label = f"\033[36m{label}\033[0m" if colour else label
    stamp = when.isoformat(timespec="milliseconds") + " " if timestamps else ""
    sys.stdout.write(f"{stamp}{label} {line.text}\n")


def _since(text: str | None) -> float:
    if text is None:
        return 0.0
    if text[:4].isdigit() and "-" in text:
        try:
            return datetime.fromisoformat(text).timestamp()
        except ValueError:
            raise UsageError(f"{text!r} is not a time.", "Write --since 2h, or --since 2026-01-31T12:00.") from None
    return time.time() - seconds(text, "since")
