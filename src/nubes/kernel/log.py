"""The log: append-only, framed, checksummed, in segments, with snapshots beside them.

A folder holds `<first record>.log` segments and `<records folded>.snap` snapshots. Opening a log reads it back, keeps
one run of records without a gap, sets everything else aside as `*.damaged`, and says so in `findings`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from nubes.kernel.disk import DISK, Disk, is_numbered, write_all
from nubes.kernel.disk import lock as lock
from nubes.kernel.errors import LogCorrupt, Unavailable, UsageError
from nubes.kernel.frames import MAX_RECORD_BYTES, SEGMENT, frame, frames, is_torn, snapshot, state_in


class Log:
    """One writer's log in `folder`, good for records `first` to `count - 1`.

    Raises `AlreadyRunning` if another process holds it, `LogCorrupt` if no state and records lead up to its end,
    `Unavailable` if the folder cannot be written. `append` buffers; `write` hands the buffer to the operating system;
    `sync` makes it survive a power cut. What was written stays in memory until a `sync` has succeeded: one that fails
    may have lost it, so it is written again.
    """

    def __init__(self, folder: Path, segment_bytes: int = 64 << 20, disk: Disk = DISK) -> None:
        self.folder = folder
        self._disk = disk
        self.findings: list[str] = []  # what was wrong when it was opened
        self.segment_bytes = segment_bytes
        self._buffer: list[bytes] = []
        self._torn = False  # the last write stopped within a record; the buffer goes on there
        self._unsynced: list[bytes] = []  # what was written since the last sync
        self._synced_size = 0  # of the segment
        self._lost = False  # a sync failed: `_unsynced` is to be written again
        self._syncing, self._writing = threading.RLock(), threading.Lock()
        self._lock = -1
        try:
            disk.make(folder)
            self._lock = disk.lock(folder)
            self.snapshot_at, self.snapshot = self._newest_snapshot()
            self._fd, self._segment_size = self._recover()
            self._synced_size = self._segment_size
            disk.sync_folder(folder)  # a process that was killed may have left names that are not safe yet
        except BaseException as error:
            if self._lock >= 0:
                disk.close(self._lock)
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
            for number, (body, _) in enumerate(frames(self._disk.read(path)), first):
                if number >= start:
                    yield body

    def _segments(self) -> list[tuple[int, Path]]:
        return [(int(path.stem), path) for path in self._files(".log")]

    def _files(self, suffix: str) -> list[Path]:
        names = self._disk.names(self.folder)
        return [self.folder / name for name in sorted(names) if is_numbered(name, suffix)]

    def _newest_snapshot(self) -> tuple[int, bytes | None]:
        """(records folded, state) of the newest snapshot that is whole; (0, None) if there is none."""
        for path in reversed(self._files(".snap")):
            state = state_in(self._disk.read(path))
            if state is not None:
                return int(path.stem), state
            aside = self._set_aside(path)
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
            fd = self._new_segment(self.count)
            self._disk.sync(fd)
            return fd, len(SEGMENT)
        raw = self._disk.read(run[-1])
        self._disk.rewrite(run[-1], raw)  # an earlier process may have failed to sync it, which nobody would know now
        return self._disk.open(run[-1]), len(raw)

    def _whole(self, path: Path) -> bool:
        """Counts the records of a segment. If not all of it is whole, cuts it behind the last that is."""
        raw = self._disk.read(path)
        good = len(SEGMENT) if raw.startswith(SEGMENT) else 0
        for _, good in frames(raw):  # noqa: B007
            self.count += 1
        if good and good == len(raw):
            return True
        aside = self._unused(path.with_suffix(f".{self.count}.damaged"))
        copy = self._disk.create(aside)
        try:
            write_all(self._disk, copy, raw[good:])
            self._disk.sync(copy)  # before the original goes: a power cut in between leaves a trace of what was lost
        finally:
            self._disk.close(copy)
        self._disk.sync_folder(self.folder)
        fd = self._disk.open(path)
        self._disk.truncate(fd, good)
        write_all(self._disk, fd, b"" if good else SEGMENT, close=True)
        what = "was cut short by a crash" if is_torn(raw, good) else "is damaged"
        self.findings.append(
            f"Record {self.count} in {path.name} {what}; everything before it is kept, "
            f"the {len(raw) - good} bytes from there on are in {aside.name}."
        )
        return False

    def _give_up(self, paths: list[Path], why: str) -> None:
        self.findings += [f"Segment {path.name} is now {self._set_aside(path)}: {why}." for path in paths]

    def _set_aside(self, path: Path) -> str:
        aside = self._unused(path.with_suffix(f"{path.suffix}.damaged"))
        self._disk.rename(path, aside)
        return aside.name

    def _unused(self, path: Path) -> Path:
        """`path`, or the first of `path.1`, `path.2`, ... that is free: what was set aside earlier stays."""
        tries = (path.with_name(f"{path.name}.{n}") if n else path for n in range(1_000_000))
        return next(candidate for candidate in tries if not self._disk.exists(candidate))

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
        if not self._buffer and not self._lost:
            return
        if self._segment_size >= self.segment_bytes and not self._torn:
            self._roll()
        with self._writing:
            self._restore()
            data = b"".join(self._buffer)
            written = 0
            try:
                while written < len(data):
                    written += self._disk.write(self._fd, memoryview(data)[written:])
            finally:
                if written:
                    self._segment_size += written
                    self._unsynced.append(data[:written])
                    self._buffer = [data[written:]] if written < len(data) else []
                    self._torn = bool(self._buffer)

    def sync(self) -> None:
        """Everything written so far survives a power cut once this returns. May be called from another thread."""
        with self._syncing:
            with self._writing:
                self._restore()
                covered = len(self._unsynced)
            try:
                self._disk.sync(self._fd)
            except OSError:
                self._lost = True
                raise
            with self._writing:
                self._synced_size += sum(map(len, self._unsynced[:covered]))
                del self._unsynced[:covered]

    def _restore(self) -> None:
        """After a sync that failed: what may have been dropped is written again, as if it never had been."""
        if self._lost:
            self._disk.truncate(self._fd, self._synced_size)
            write_all(self._disk, self._fd, b"".join(self._unsynced))
            self._lost = False

    def _roll(self) -> None:
        """Goes on in a new segment, under the same descriptor: another thread may be about to sync it."""
        with self._syncing:
            self.sync()
            self._disk.become(self._fd, self._new_segment(self.count - len(self._buffer)))
            self._unsynced, self._synced_size, self._segment_size = [SEGMENT], 0, len(SEGMENT)

    def _new_segment(self, first: int) -> int:
        path = self.folder / f"{first:016d}.log"
        fd = self._disk.create(path)
        try:
            write_all(self._disk, fd, SEGMENT)
            self._disk.sync_folder(self.folder)
        except OSError:
            self._disk.close(fd)
            self._disk.remove(path)
            raise
        return fd

    def save_snapshot(self, state: bytes, keep_segments: bool = True) -> None:
        """Stores `state` as the fold of all records so far; without `keep_segments`, drops what two snapshots cover."""
        self.write()
        self.sync()
        path = self.folder / f"{self.count:016d}.snap"
        temporary = self.folder / "new.tmp"
        if self._disk.exists(temporary):  # of a process that was killed
            self._disk.remove(temporary)
        fd = self._disk.create(temporary)
        try:
            write_all(self._disk, fd, snapshot(state))
            self._disk.sync(fd)
        except OSError:
            self._disk.remove(temporary)
            raise
        finally:
            self._disk.close(fd)
        self._disk.rename(temporary, path)
        self._disk.sync_folder(self.folder)
        snapshots = self._files(".snap")
        for old in snapshots[:-2]:
            self._disk.remove(old)
        if keep_segments or len(snapshots) < 2:
            return
        segments = self._segments()
        for (_, segment), (following, _) in pairwise(segments):
            if following <= int(snapshots[-2].stem):
                self._disk.remove(segment)
                self.first = following

    def size_bytes(self) -> int:
        """How large all segments are."""
        return sum(self._disk.size(path) for _, path in self._segments())

    def close(self) -> None:
        """Writes, syncs and lets go of the folder, even if the disk is full."""
        try:
            self.write()
            self.sync()
        finally:
            self._disk.close(self._fd)
            self._disk.close(self._lock)


def read(folder: Path, disk: Disk = DISK) -> Iterator[bytes]:
    """The records of a log that somebody else may be writing to, up to the first that is not whole."""
    for name in sorted(name for name in disk.names(folder) if is_numbered(name, ".log")):
        raw = disk.read(folder / name)
        end = len(SEGMENT)
        for body, end in frames(raw):  # noqa: B007
            yield body
        if end != len(raw):
            return
