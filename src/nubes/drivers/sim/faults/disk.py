"""A disk in memory that does what disks do on bad days: it fills up, fails to flush, tears, forgets, and rots.

Of each file it keeps what a reader sees (`now`) and what a power cut leaves at least (`stable`). In between lies what
was written since the last sync: a power cut keeps any part of it, by sectors, in any order. Names of files are kept
apart likewise: what was created, renamed or removed since the folder was synced may have happened or not.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

from nubes.drivers.sim.faults.pages import NEVER, File
from nubes.kernel.errors import AlreadyRunning


class Crash(BaseException):
    """The process that used the disk is gone, in the middle of what it did. Nothing may catch this but the world."""


class SimDisk:
    """One folder of files. `r` decides what a fault leaves; the faults are switched on from outside.

    `op` is told of everything that is done, before it is done: what the story shows.
    """

    def __init__(self, r: random.Random, op: Callable[[str], None] | None = None) -> None:
        self.r = r
        self.op = op
        self.files: dict[str, File] = {}
        self.stable: dict[str, File] = {}  # names as a power cut leaves them at least
        self.renames: list[tuple[str, str | None, File]] = []  # (gone, come, file) since the folder was synced
        self.locked = False
        self.rotten = 0  # bits that were turned
        self.changes = 0  # of what is safe
        # faults
        self.room = NEVER  # bytes that can still be written
        self.short = 0.0  # how likely a write takes only a part
        self.failing = 0  # so many syncs from now on fail
        self.forgetful = False  # a sync that failed drops what it did not write from what is read, too
        self.crash_in = -1  # operations until the process is gone
        self._open: dict[int, File] = {}
        self._fds = 2
        self._gone = False

    # -- what the process does -----------------------------------------------------------------------------------

    def _begin(self, what: str, *names: object) -> None:
        if self._gone:
            raise Crash
        if self.op is not None:
            self.op(" ".join([what, *map(str, names)]))
        if self.crash_in >= 0:
            self.crash_in -= 1
            if self.crash_in < 0:
                self._gone = True
                raise Crash

    def make(self, folder: Path) -> None:
        pass

    def lock(self, folder: Path) -> int:
        if self.locked:
            raise AlreadyRunning("Another process holds the folder.")
        self.locked = True
        return 1

    def names(self, folder: Path) -> list[str]:
        if self._gone:
            raise Crash
        return list(self.files)

    def read(self, path: Path) -> bytes:
        return bytes(self._file(path).now)

    def size(self, path: Path) -> int:
        return len(self._file(path).now)

    def exists(self, path: Path) -> bool:
        return path.name in self.files

    def create(self, path: Path) -> int:
        self._begin("create", path.name)
        if path.name in self.files:
            raise _error(errno.EEXIST)
        if self.room <= 0:
            raise _error(errno.ENOSPC)
        file = self.files[path.name] = File()
        self.renames.append(("", path.name, file))
        return self._opened(file)

    def open(self, path: Path) -> int:
        return self._opened(self._file(path))

    def write(self, fd: int, data: memoryview) -> int:
        file = self._open[fd]
        size = min(len(data), self.room)
        if size > 1 and self.short and self.r.random() < self.short:
            size = self.r.randrange(1, size)
        if self.crash_in == 0:  # it got so far
            self._append(file, data[: self.r.randrange(size + 1)])
        self._begin("write", size, "bytes")
        if not size:
            raise _error(errno.ENOSPC)
        self._append(file, data[:size])
        return size

    def _append(self, file: File, data: memoryview) -> None:
        file.touched(len(file.now))
        file.now += data
        if self.room < NEVER:
            self.room -= len(data)

    def rewrite(self, path: Path, data: bytes) -> None:
        file = self._file(path)
        self._begin("rewrite", path.name)
        self.changes += 1
        file.now[: len(data)] = data
        file.touched(0)
        self._begin("sync")
        if self.failing > 0:
            self.failing -= 1
            self._half(file)
            raise _error(errno.EIO)
        self.changes += 1
        file.sync()

    def truncate(self, fd: int, size: int) -> None:
        self._begin("truncate to", size)
        file = self._open[fd]
        self.changes += 1
        if size < len(file.now):
            del file.now[size:]
            file.touched(size)

    def sync(self, fd: int) -> None:
        self._begin("sync")
        file = self._open[fd]
        if self.failing > 0:
            self.failing -= 1
            self._half(file)
            raise _error(errno.EIO)
        self.changes += 1
        file.sync()

    def _half(self, file: File) -> None:
        """A sync fails: any sectors were written, none will be tried again, and the rest may be gone at once."""
        self.changes += 1
        if file.dirty < NEVER:
            file.stable = file.torn(self.r)
            if self.forgetful:
                file.now = bytearray(file.stable.ljust(len(file.now), b"\0")[: len(file.now)])
            file.dirty = NEVER

    def become(self, fd: int, other: int) -> None:
        self._open[fd] = self._open.pop(other)

    def close(self, fd: int) -> None:
        if self._gone:
            raise Crash
        if fd == 1:
            self.locked = False
        else:
            del self._open[fd]

    def rename(self, path: Path, to: Path) -> None:
        self._begin("rename", path.name, "to", to.name)
        file = self._file(path)
        del self.files[path.name]
        self.files[to.name] = file
        self.renames.append((path.name, to.name, file))

    def remove(self, path: Path) -> None:
        self._begin("remove", path.name)
        file = self._file(path)
        del self.files[path.name]
        self.renames.append((path.name, None, file))

    def sync_folder(self, folder: Path) -> None:
        self._begin("sync the folder")
        if self.failing > 0:
            self.failing -= 1
            raise _error(errno.EIO)
        self.changes += 1
        self.stable = dict(self.files)
        self.renames.clear()

    def _file(self, path: Path) -> File:
        if self._gone:
            raise Crash
        if path.name not in self.files:
            raise _error(errno.ENOENT)
        return self.files[path.name]

    def _opened(self, file: File) -> int:
        self._fds += 1
        self._open[self._fds] = file
        return self._fds

    # -- what happens to it --------------------------------------------------------------------------------------

    def killed(self) -> None:
        """The process is gone. What it wrote stays readable."""
        self._open.clear()
        self.locked = self._gone = False
        self.crash_in = -1

    def power_cut(self) -> None:
        """The process is gone, and of all that was not synced, any part."""
        self.killed()
        self.changes += 1
        r = self.r
        ordered = r.random() < 0.5  # most file systems keep the order in which names changed
        cut = r.randrange(len(self.renames) + 1)
        for number, (gone, come, file) in enumerate(self.renames):
            if number < cut if ordered else r.random() < 0.5:
                if gone and self.stable.get(gone) is file:
                    del self.stable[gone]
                if come:
                    self.stable[come] = file
        self.renames.clear()
        self.files = dict(self.stable)
        for file in self.files.values():
            if file.dirty < NEVER:
                file.stable = file.torn(r)
                file.dirty = NEVER
            file.now = bytearray(file.stable)

    def rot(self, name: str) -> None:
        """A bit of a file turns."""
        file = self.files[name]
        place = self.r.randrange(len(file.now))
        bit = 1 << self.r.randrange(8)
        file.now[place] ^= bit
        if place < len(file.stable):
            file.stable[place] = file.now[place]
        self.rotten += 1
        self.changes += 1

    def mend(self) -> None:
        """No more faults."""
        self.room, self.short, self.failing, self.crash_in = NEVER, 0.0, 0, -1

    def safe(self, suffix: str) -> list[tuple[str, bytes]]:
        """The files of this ending, by name, with what they begin with whether the power fails or only the process."""
        names = [name for name, file in self.files.items() if name.endswith(suffix) and self.stable.get(name) is file]
        return [(name, self.files[name].safe()) for name in sorted(names)]


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
