"""What functions printed, kept on disk: JSON lines in files that are rotated by size and dropped by age."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

FILE_BYTES = 8 << 20
TOTAL_BYTES = 256 << 20
AGE_S = 7 * 86_400.0
FLUSH_S = 0.1  # how long a line may stay in memory
POLL_S = 0.1  # how often a reader that follows looks for more


class Line(msgspec.Struct, frozen=True):
    """One line that was printed. `call` is 0 for what was printed outside of any call."""

    at: float
    function: str
    call: int
    stream: str
    text: str


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Line).decode
Wanted = Callable[[Line], bool]


class LogStore:
    """Writes to `<folder>/<microseconds>.jsonl`. A disk that takes nothing costs lines, never the control plane."""

    def __init__(
        self, folder: Path, loop: asyncio.AbstractEventLoop, clock: Callable[[], float],
        file_bytes: int = FILE_BYTES, total_bytes: int = TOTAL_BYTES, age_s: float = AGE_S,
    ) -> None:  # fmt: skip
        self.folder = folder
        folder.mkdir(exist_ok=True, mode=0o700)
        self._loop = loop
        self._clock = clock
        self._limits = file_bytes, total_bytes, age_s
        self._lines: list[bytes] = []
        self._fd = -1
        self._size = 0
        self.lost = 0  # lines that could not be written
        self._scheduled = False

    def add(self, call: int, function: str, stream: str, text: str) -> None:
        """The control plane's `prints` hook."""
        at = self._clock()
        for line in text.splitlines():
            self._lines.append(_encode(Line(at, function, call, stream, line)) + b"\n")
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        self._scheduled = False
        lines, self._lines = self._lines, []
        if not lines:
            return
        try:
            if self._fd < 0 or self._size >= self._limits[0]:
                self._roll()
            data = b"".join(lines)
            self._size += os.write(self._fd, data)
        except OSError as error:
            if not self.lost:
                print(
                    f"nubes: printed lines cannot be kept in {self.folder}: {error.strerror}.",
                    file=sys.stderr,
                    flush=True,
                )
            self.lost += len(lines)

    def _roll(self) -> None:
        """Begins a new file and drops what is too old or too much."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        _, total, age_s = self._limits
        now = self._clock()
        left = total
        for path in sorted(_files(self.folder), reverse=True):
            status = path.stat()
            left -= status.st_size
            if left < 0 or status.st_mtime < now - age_s:
                path.unlink(missing_ok=True)
        path = self.folder / f"{int(now * 1e6):017d}.jsonl"
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._size = os.fstat(self._fd).st_size

    def close(self) -> None:
        self.flush()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


def wanted(function: str = "", call: int = 0, since_s: float = 0.0, search: str = "") -> Wanted:
    """Which lines to show: of a function (`app/function`) or an app, of a call, since a time, with a text in them."""

    def check(line: Line) -> bool:
        if function and line.function != function and not line.function.startswith(function + "/"):
            return False
        return (not call or line.call == call) and line.at >= since_s and search in line.text

    return check


def read(folder: Path, want: Wanted, tail: int | None = None) -> list[Line]:
    """The lines there are, the oldest first; with `tail` only the last so many."""
    kept: deque[Line] = deque(maxlen=tail)
    for path in _files(folder):
        for line in _Reader(path).more():
            if want(line):
                kept.append(line)
    return list(kept)


def follow(folder: Path, want: Wanted, tail: int | None = None) -> Iterator[Line]:
    """The lines there are, then those to come, without end."""
    readers = {path: _Reader(path) for path in _files(folder)}
    kept: deque[Line] = deque(maxlen=tail)
    for reader in readers.values():
        kept.extend(line for line in reader.more() if want(line))
    yield from kept
    while True:
        time.sleep(POLL_S)
        paths = _files(folder)
        for path in paths[-2:]:  # nothing is added to older ones any more
            reader = readers.setdefault(path, _Reader(path))
            yield from (line for line in reader.more() if want(line))


class _Reader:
    """Reads a file that grows. What is no whole line yet is read again later; what is no line at all is passed over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0

    def more(self) -> Iterator[Line]:
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return
        end = data.rfind(b"\n") + 1
        self.offset += end
        for raw in data[:end].splitlines():
            try:
                yield _decode(raw)
            except (msgspec.DecodeError, ValueError):
                continue
