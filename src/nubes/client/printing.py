"""What remote functions print, shown here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from nubes.drivers.local import wire


def show(frame: list[Any]) -> None:
    """Prints a line that a remote function printed."""
    if frame[0] == wire.LOG:
        _, _, function, stream, text = frame
        printer(function, stream, text)


def _print(function: str, stream: str, text: str) -> None:
    label = function.partition("/")[2] or function
    out = sys.stderr if stream == "stderr" else sys.stdout
    for line in text.splitlines():
        out.write(f"[{label}] {line}\n")
    out.flush()


printer: Callable[[str, str, str], None] = _print
