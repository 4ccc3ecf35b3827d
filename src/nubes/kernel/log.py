"""The log: append-only, framed, checksummed, in segments, with snapshots beside them.

A folder holds `<first record>.log` segments and `<records folded>.snap` snapshots. Opening a log reads it back, keeps
one run of records without a gap, sets everything else aside as `*.damaged`, and says so in `findings`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from nubes.kernel.errors import AlreadyRunning, LogCorrupt, Unavailable, UsageError
from nubes.kernel.frames import MAX_RECORD_BYTES, SEGMENT, frame, frames, is_torn, snapshot, state_in


class Log:
    """One writer's log in `folder`, good for records `first` to `count - 1`.

    Raises `AlreadyRunning` if another process holds it, `LogCorrupt` if no state and records lead up to its end,
    `Unavailable` if the folder cannot be written. `append` buffers; `write` hands the buffer to the operating system;
    `sync` makes it survive a power cut.
    """

    def __init__(self, folder: Path, segment_bytes: int = 64 << 20) -> None:
        self.folder = folder
        self.findings: list[str] = []  # what was wrong when it was opened
        self.segment_bytes = segment_bytes
        self._buffer: list[bytes] = []
        self._torn = False  # the last write stopped within a record; the buffer goes on there
        self._lock = -1
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = lock(folder)
            self.snapshot_at, self.snapshot = self._newest_snapshot()
            self._fd, self._segment_size = self._recover()
        except BaseException as error:
            if self._lock >= 0:
                os.close(self._lock)
            if not isinstance(error, OSError):
                raise
            hint = "Free some space there or give access to it, and start again."
            raise Unavailable(f"The log in {folder} cannot be opened: {error.strerror}.", hint) from error

    # -- reading -------------------------------------------------------------------------------------------------

    def records(self, start: int | None = None) -> Iterator[bytes]:
        """Records from number `start` on (default: those the newest snapshot does not cover), as they are on disk."""
        start = self.snapshot_at if start is None else start
        segments = self._segments()
        for position, (first, path) in enumerate(segments):
            if position + 1 < len(segments) and segments[position + 1][0] <= start:
                continue
            for number, (body, _) in enumerate(frames(path.read_bytes()), first):
                if number >= start:
                    yield body

    def _segments(self) -> list[tuple[int, Path]]:
        return sorted((int(path.stem), path) for path in self.folder.glob("[0-9]*.log"))

    def _newest_snapshot(self) -> tuple[int, bytes | None]:
        """(records folded, state) of the newest snapshot that is whole; (0, None) if there is none."""
        for path in sorted(self.folder.glob("[0-9]*.snap"), reverse=True):
            state = state_in(path.read_bytes())
            if state is not None:
                return int(path.stem), state
            aside = _set_aside(path)
            self.findings.append(
                f"Snapshot {path.name} is damaged, and now {aside}; an older state and the log take its place."
            )
        return 0, None

    def _recover(self) -> tuple[int, int]:
        """Finds the run of records that can be trusted, sets the rest aside, and opens the last segment: (fd, size).

        A break is harmless if the newest state covers it: then what comes before it goes, else what comes behind.
        """
        rest = self._segments()
        self.first = self.count = rest[0][0] if rest else self.snapshot_at
        if self.first > self.snapshot_at:
            raise LogCorrupt(
                f"The log in {self.folder} starts at record {self.first}, "
                f"but the newest state covers {self.snapshot_at}.",
                "Restore the missing segments or snapshot from a backup, or start with an empty data folder.",
            )
        run: list[Path] = []
        while rest:
            first, path = rest[0]
            if first == self.count:
                del rest[0]
                run.append(path)
                if self._whole(path):
                    continue
            else:
                self.findings.append(f"The records before {path.name} are missing, from record {self.count} on.")
            if rest and rest[0][0] <= self.snapshot_at:
                self._give_up(run, "the newest state covers it")
                run.clear()
                self.first = self.count = rest[0][0]
            else:
                self._give_up([path for _, path in rest], "it cannot follow")
                break
        if self.count < self.snapshot_at:
            self.findings.append(
                f"The log ends at record {self.count}; the state of {self.snapshot_at} records takes its place."
            )
            self._give_up(run, "the newest state covers it")
            run.clear()
            self.first = self.count = self.snapshot_at
        if not run:
            return self._new_segment(self.count), len(SEGMENT)
        return os.open(run[-1], os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC), run[-1].stat().st_size

    def _whole(self, path: Path) -> bool:
        """Counts the records of a segment. If not all of it is whole, cuts it behind the last that is."""
        raw = path.read_bytes()
        good = len(SEGMENT) if raw.startswith(SEGMENT) else 0
        for _, good in frames(raw):  # noqa: B007
            self.count += 1
        if good and good == len(raw):
            return True
        aside = _unused(path.with_suffix(f".{self.count}.damaged"))
        aside.write_bytes(raw[good:])
        os.truncate(path, good)
        if not good:
            path.write_bytes(SEGMENT)
        what = "was cut short by a crash" if is_torn(raw, good) else "is damaged"
        self.findings.append(
            f"Record {self.count} in {path.name} {what}; everything before it is kept, "
            f"the {len(raw) - good} bytes from there on are in {aside.name}."
        )
        return False

    def _give_up(self, paths: list[Path], why: str) -> None:
        self.findings += [f"Segment {path.name} is now {_set_aside(path)}: {why}." for path in paths]

    # -- writing -------------------------------------------------------------------------------------------------

    def append(self, body: bytes) -> int:
        """Adds a record to the buffer and returns its number. Raises `UsageError` if it is too large."""
        if len(body) > MAX_RECORD_BYTES:
            raise UsageError(
                f"A record of {len(body)} bytes is too large for the log.",
                "Store the data elsewhere and pass its name.",
            )
        self._buffer.append(frame(body))
        self.count += 1
        return self.count - 1

    def write(self) -> None:
        """Hands everything buffered to the operating system. On a full disk nothing buffered is lost: call again."""
        if not self._buffer:
            return
        if self._segment_size >= self.segment_bytes and not self._torn:
            self._roll()
        data = b"".join(self._buffer)
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, memoryview(data)[written:])
        finally:
            if written:
                self._segment_size += written
                self._buffer = [data[written:]] if written < len(data) else []
                self._torn = bool(self._buffer)

    def sync(self) -> None:
        """Everything written so far survives a power cut once this returns. May be called from another thread."""
        os.fdatasync(self._fd)

    def _roll(self) -> None:
        """Goes on in a new segment, under the same descriptor: another thread may be about to sync it."""
        self.sync()
        fd = self._new_segment(self.count - len(self._buffer))
        os.dup2(fd, self._fd, inheritable=False)
        os.close(fd)
        self._segment_size = len(SEGMENT)

    def _new_segment(self, first: int) -> int:
        path = self.folder / f"{first:016d}.log"
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            written = 0
            while written < len(SEGMENT):
                written += os.write(fd, SEGMENT[written:])
            _sync_folder(self.folder)
        except OSError:
            os.close(fd)
            path.unlink()
            raise
        return fd

    def save_snapshot(self, state: bytes, keep_segments: bool = True) -> None:
        """Stores `state` as the fold of all records so far; without `keep_segments`, drops what two snapshots cover."""
        self.write()
        self.sync()
        path = self.folder / f"{self.count:016d}.snap"
        temporary = self.folder / "new.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(snapshot(state))
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        temporary.rename(path)
        _sync_folder(self.folder)
        snapshots = sorted(self.folder.glob("[0-9]*.snap"))
        for old in snapshots[:-2]:
            old.unlink()
        if keep_segments or len(snapshots) < 2:
            return
        segments = self._segments()
        for (_, segment), (following, _) in pairwise(segments):
            if following <= int(snapshots[-2].stem):
                segment.unlink()
                self.first = following

    def size_bytes(self) -> int:
        """How large all segments are."""
        return sum(path.stat().st_size for _, path in self._segments())

    def close(self) -> None:
        """Writes, syncs and lets go of the folder, even if the disk is full."""
        try:
            self.write()
            self.sync()
        finally:
            os.close(self._fd)
            os.close(self._lock)


def read(folder: Path) -> Iterator[bytes]:
    """The records of a log that somebody else may be writing to, up to the first that is not whole."""
    for path in sorted(folder.glob("[0-9]*.log")):
        raw = path.read_bytes()
        end = len(SEGMENT)
        for body, end in frames(raw):  # noqa: B007
            yield body
        if end != len(raw):
            return


def _set_aside(path: Path) -> str:
    return path.rename(_unused(path.with_suffix(f"{path.suffix}.damaged"))).name


def _unused(path: Path) -> Path:
    """`path`, or the first of `path.1`, `path.2`, ... that is free: what was set aside earlier stays."""
    tries = (path.with_name(f"{path.name}.{n}") if n else path for n in range(1_000_000))
    return next(candidate for candidate in tries if not candidate.exists())


def lock(folder: Path) -> int:
    """Holds a log's folder for as long as the descriptor that is returned is open. Raises `AlreadyRunning`."""
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
    try:
        os.pwrite(fd, f"{os.getpid():<31}\n".encode(), 0)
    except OSError:
        pass  # it only helps those who ask; a full disk must not keep the log from opening
    return fd


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
