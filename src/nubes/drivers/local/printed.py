"""What an instance prints: whole lines go to the control plane, labelled with their call."""

from __future__ import annotations

import contextvars
import io
import os
import sys
from collections.abc import Callable

call: contextvars.ContextVar[int] = contextvars.ContextVar("call", default=0)  # the one that runs here


class Output(io.TextIOBase):
    """Standard output or error; `tell` takes (call, stream, text)."""

    def __init__(self, name: str, fd: int, tell: Callable[[int, str, str], None]) -> None:
        self._name = name
        self._fd = fd
        self._tell = tell
        self._parts: dict[int, str] = {}

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def write(self, text: str) -> int:
        one = call.get()
        text = str(text)
        whole, newline, rest = (self._parts.pop(one, "") + text).rpartition("\n")
        if newline:
            self._tell(one, self._name, whole + newline)
        if rest:
            self._parts[one] = rest
        return len(text)

    def flush(self) -> None:
        if self._parts:
            one = call.get()
            rest = self._parts.pop(one, "")
            if rest:
                self._tell(one, self._name, rest)


def redirect(path: str, tell: Callable[[int, str, str], None]) -> None:
    """Has Python's output go to `tell`, and what is written to the descriptors themselves to the file `path`."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    sys.stdout = Output("stdout", 1, tell)
    sys.stderr = Output("stderr", 2, tell)
