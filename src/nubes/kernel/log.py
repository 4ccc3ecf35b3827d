"""The log: append-only, framed, checksummed, in segments, with snapshots beside them.

A folder holds `<first record>.log` segments and `<records folded>.snap` snapshots. A record is framed as
`length, crc32, bytes`; the crc also covers the length. Opening a log reads it back, cuts a torn tail, sets what lies behind damage
aside as `*.damaged`, and says so in `findings`.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from nubes.kernel.errors import AlreadyRunning, LogCorrupt

_MAGIC = b"nubeslog1\n"
_SNAP_MAGIC = b"nubessnap1\n"
_FRAME = struct.Struct("<II")
_LENGTH = struct.Struct("<I")
MAX_RECORD_BYTES = 64 << 20


def _crc(body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(_LENGTH.pack(len(body))))


class Log:
    """One writer's log in `folder`. Raises `AlreadyRunning` if another process holds it, `LogCorrupt` on a gap.

    `append` buffers; `write` hands the buffer to the operating system; `sync` makes it survive a power cut.
    """

    def __init__(self, folder: Path, segment_bytes: int = 64 << 20) -> None:
        self.folder = folder
        self.findings: list[str] = []
        self.segment_bytes = segment_bytes
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = _lock(folder)
        self._buffer: list[bytes] = []
        self._segment_fd = -1
        self._segment_size = 0
        self.snapshot_at, self.snapshot = self._newest_snapshot()
        self.first = 0  # number of the oldest record there is
        self.count = 0  # number of the next record
        self._check()

    # -- reading -------------------------------------------------------------------------------------------------

    def records(self, start: int | None = None) -> Iterator[bytes]:
        """Records from number `start` on (default: those the newest snapshot does not cover), as they are on disk."""
        start = self.snapshot_at if start is None else start
        segments = self._segments()
        for number, (first, path) in enumerate(segments):
            if number + 1 < len(segments) and segments[number + 1][0] <= start:
                continue
            for index, (body, _) in enumerate(_frames(path.read_bytes())):
                if first + index >= start:
                    yield body

    def _segments(self) -> list[tuple[int, Path]]:
        return sorted((int(path.stem), path) for path in self.folder.glob("*.log"))

    def _newest_snapshot(self) -> tuple[int, bytes | None]:
        for number, path in sorted(((int(p.stem), p) for p in self.folder.glob("*.snap")), reverse=True):
            raw = path.read_bytes()
            head = len(_SNAP_MAGIC) + 4
            if raw.startswith(_SNAP_MAGIC) and len(raw) >= head:
                (crc,) = _LENGTH.unpack_from(raw, len(_SNAP_MAGIC))
                if zlib.crc32(raw[head:]) == crc:
                    return number, raw[head:]
            path.rename(path.with_suffix(".snap.damaged"))
            self.findings.append(f"Snapshot {path.name} is damaged; an older state and the log take its place.")
        return 0, None

    def _check(self) -> None:
        """Finds the end of what can be trusted, cuts the rest off, and opens the last segment for appending."""
        segments = self._segments()
        expected = segments[0][0] if segments else self.snapshot_at
        self.first = expected
        if expected > self.snapshot_at:
            raise LogCorrupt(
                f"The log in {self.folder} starts at record {expected}, but the newest state covers {self.snapshot_at}.",
                "Restore the missing segments or snapshot from a backup, or start with an empty data folder.",
            )
        for position, (first, path) in enumerate(segments):
            if first != expected:
                self._set_aside(segments[position:], f"Records {expected} to {first - 1} are missing")
                break
            raw = path.read_bytes()
            good, count = 0, 0
            if raw.startswith(_MAGIC):
                good = len(_MAGIC)
                for _, good in _frames(raw):  # noqa: B007
                    count += 1
            expected = first + count
            if good < len(raw) or not raw.startswith(_MAGIC):
                self._cut(path, raw, good, expected, last=position == len(segments) - 1)
                self._set_aside(segments[position + 1 :], f"Damage stands before record {expected}")
                break
        if expected < self.snapshot_at:  # the log's end was lost but a state covers it: go on after the state
            self._set_aside(self._segments(), f"The log ends at record {expected}, before the state of {self.snapshot_at}")
            expected = self.first = self.snapshot_at
        self.count = expected
        segments = self._segments()
        if segments:
            path = segments[-1][1]
            self._segment_fd = os.open(path, os.O_WRONLY | os.O_APPEND)
            self._segment_size = path.stat().st_size
        else:
            self._open_segment()

    def _cut(self, path: Path, raw: bytes, good: int, number: int, last: bool) -> None:
        aside = path.with_suffix(f".{number}.damaged")
        aside.write_bytes(raw[good:])
        if raw.startswith(_MAGIC):
            os.truncate(path, good)
        else:
            path.write_bytes(_MAGIC)
        torn = last and _is_torn(raw[good:])
        self.findings.append(
            f"Record {number} in {path.name} {'was cut short by a crash' if torn else 'is damaged'}; "
            f"everything before it is kept, the {len(raw) - good} bytes from there on are in {aside.name}."
        )

    def _set_aside(self, segments: list[tuple[int, Path]], why: str) -> None:
        for _, path in segments:
            path.rename(path.with_suffix(".log.damaged"))
            self.findings.append(f"{why}; {path.name} cannot follow and was set aside as {path.stem}.log.damaged.")

    # -- writing -------------------------------------------------------------------------------------------------

    def append(self, body: bytes) -> int:
        """Adds a record to the buffer and returns its number."""
        crc = zlib.crc32(body, zlib.crc32(_LENGTH.pack(len(body))))
        self._buffer.append(_FRAME.pack(len(body), crc) + body)
        self.count += 1
        return self.count - 1

    @property
    def buffered(self) -> bool:
        return bool(self._buffer)

    def write(self) -> None:
        """Hands everything buffered to the operating system. On a full disk nothing buffered is lost: call again."""
        if not self._buffer:
            return
        if self._segment_size >= self.segment_bytes:
            self._roll()
        data = b"".join(self._buffer)
        written = 0
        try:
            while written < len(data):
                written += os.write(self._segment_fd, memoryview(data)[written:])
        except OSError:
            os.ftruncate(self._segment_fd, self._segment_size)  # all or nothing, so that a retry writes no record twice
            raise
        self._segment_size += written
        self._buffer.clear()

    def sync(self) -> None:
        """Everything written so far survives a power cut once this returns. May be called from another thread."""
        os.fdatasync(self._segment_fd)

    def _roll(self) -> None:
        os.fdatasync(self._segment_fd)
        os.close(self._segment_fd)
        self._segment_fd = -1
        self._open_segment(self.count - len(self._buffer))

    def _open_segment(self, first: int | None = None) -> None:
        path = self.folder / f"{self.count if first is None else first:016d}.log"
        self._segment_fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(self._segment_fd, _MAGIC)
        self._segment_size = len(_MAGIC)
        _sync_folder(self.folder)

    def save_snapshot(self, state: bytes, keep_segments: bool = True) -> None:
        """Stores `state` as the fold of every record so far. Without `keep_segments`, drops what two snapshots cover."""
        self.write()
        self.sync()
        path = self.folder / f"{self.count:016d}.snap"
        temporary = path.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            file.write(_SNAP_MAGIC + _LENGTH.pack(zlib.crc32(state)) + state)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        _sync_folder(self.folder)
        snapshots = sorted(self.folder.glob("*.snap"))
        for old in snapshots[:-2]:
            old.unlink()
        if not keep_segments and len(snapshots) >= 2:
            covered = int(snapshots[-2].stem)
            segments = self._segments()
            for (_, path), (following, _) in zip(segments, segments[1:], strict=False):
                if following <= covered:
                    path.unlink()

    def close(self) -> None:
        """Writes, syncs and lets go of the folder."""
        if self._segment_fd >= 0:
            self.write()
            self.sync()
            os.close(self._segment_fd)
            self._segment_fd = -1
        os.close(self._lock)


def read(folder: Path) -> Iterator[bytes]:
    """The records of a log that somebody else may be writing to, up to the first that is not whole."""
    for path in sorted(folder.glob("*.log")):
        raw = path.read_bytes()
        if not raw.startswith(_MAGIC):
            return
        end = len(_MAGIC)
        for body, end in _frames(raw):
            yield body
        if end < len(raw):
            return


def _frames(raw: bytes) -> Iterator[tuple[bytes, int]]:
    """(record, offset behind it) for each whole record, until the first that is not."""
    position, size = len(_MAGIC), len(raw)
    if not raw.startswith(_MAGIC):
        return
    while position + _FRAME.size <= size:
        length, crc = _FRAME.unpack_from(raw, position)
        end = position + _FRAME.size + length
        if end > size:
            return
        body = raw[position + _FRAME.size : end]
        if _crc(body) != crc:
            return
        yield body, end
        position = end


def _is_torn(lost: bytes) -> bool:
    """Whether a tail looks like a write that a crash cut short, rather than bytes that changed under us."""
    if len(lost) < _FRAME.size:
        return True
    length, _ = _FRAME.unpack_from(lost)
    return len(lost) < _FRAME.size + length and length <= MAX_RECORD_BYTES


def _lock(folder: Path) -> int:
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(fd, 32).decode(errors="replace").strip()
        os.close(fd)
        raise AlreadyRunning(
            f"Process {holder or '?'} already runs a control plane on {folder}.",
            "Stop it with `nubes down`, or choose another folder with --data.",
        ) from None
    os.truncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())
    return fd


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
