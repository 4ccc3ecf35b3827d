"""What a log is to those who write to it and read it, wherever it is kept."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Protocol


class AnyLog(Protocol):
    """One writer's log, good for records `first` to `count - 1`.

    `append` buffers; `write` hands the buffer on without waiting, and raises `OSError` while nothing can be kept: then
    nothing buffered is lost, and it is to be called again; `sync` returns once all that was handed on would survive a
    crash and a power cut, and may be called from another thread. `Superseded` says that somebody else writes here now.
    """

    first: int
    count: int
    snapshot: bytes | None  # the newest state as it was opened
    snapshot_at: int  # how many records it is the fold of
    findings: list[str]  # what was wrong as it was opened

    def records(self, start: int | None = None) -> Iterator[bytes]: ...
    def append(self, body: bytes) -> int: ...
    def write(self) -> None: ...
    def sync(self) -> None: ...
    def save_snapshot(self, state: bytes, keep_segments: bool = True) -> None: ...
    def size_bytes(self) -> int: ...
    def close(self) -> None: ...


class Superseded(OSError):
    """Another writer has taken over: nothing more can be kept here, ever."""

    def __init__(self, where: str) -> None:
        super().__init__(errno.EPERM, f"another control plane has taken over {where}")
