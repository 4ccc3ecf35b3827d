"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 10_000  # off a terminal nothing is cut


def as_json(value: Any) -> None:
    """Plain data as indented JSON."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def as_json_line(value: Any) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


def console() -> Console:
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> None:
    """A table; numbers (the columns in `right`) to the right."""
    from rich.table import Table
    from rich.text import Text

    made = Table(
        box=None, pad_edge=False, padding=(0, 2, 0, 0), title=title or None, title_justify="left", title_style="bold"
    )
    for column in columns:
        made.add_column(
            column, justify="right" if column in right else "left", header_style="dim", no_wrap=not sys.stdout.isatty()
        )
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    console().print(made)


def colours() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def log_printer(quiet: bool) -> Any:
    """A printer for lines that functions print: labelled, or nothing at all."""
    if quiet:
        return lambda function, stream, text: None
    colour = colours()

    def show(function: str, stream: str, text: str) -> None:
        label = f"[{function.partition('/')[2] or function}]"
        out = sys.stderr if stream == "stderr" else sys.stdout
        for line in text.splitlines():
            out.write(f"\033[36m{label}\033[0m {line}\n" if colour else f"{label} {line}\n")
        out.flush()

    return show
