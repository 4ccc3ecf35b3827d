"""The file operations that a log needs, so that a simulated disk can take the place of the real one."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Protocol

from nubes.kernel.errors import AlreadyRunning


class Disk(Protocol):
    """Files by path, and open ones by number; everything raises `OSError` as the operating system does.

    What is written is readable at once, but survives a power cut only after `sync` of the file; that a file has its
    name, only after `sync_folder`. A `sync` that failed may have dropped what it was to keep: a later one that succeeds
    says nothing of it.
    """

    def make(self, folder: Path) -> None: ...
    def lock(self, folder: Path) -> int: ...
    def names(self, folder: Path) -> list[str]: ...
    def read(self, path: Path) -> bytes: ...
    def size(self, path: Path) -> int: ...
    def exists(self, path: Path) -> bool: ...
    def create(self, path: Path) -> int: ...
    def open(self, path: Path) -> int: ...
    def write(self, fd: int, data: memoryview) -> int: ...
    def rewrite(self, path: Path, data: bytes) -> None: ...
    def truncate(self, fd: int, size: int) -> None: ...
    def sync(self, fd: int) -> None: ...
    def become(self, fd: int, other: int) -> None: ...
    def close(self, fd: int) -> None: ...
    def rename(self, path: Path, to: Path) -> None: ...
    def remove(self, path: Path) -> None: ...
    def sync_folder(self, folder: Path) -> None: ...


class RealDisk:
    """The operating system's files. What is opened is written at its end, and closed in processes that are started."""

    def make(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def lock(self, folder: Path) -> int:
        return lock(folder)

    def names(self, folder: Path) -> list[str]:
        try:
            return os.listdir(folder)
        except FileNotFoundError:
            return []

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def size(self, path: Path) -> int:
        return path.stat().st_size

    def exists(self, path: Path) -> bool:
        return path.exists()

    def create(self, path: Path) -> int:
        """A new file. Raises `FileExistsError`."""
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def open(self, path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def write(self, fd: int, data: memoryview) -> int:
        return os.write(fd, data)

    def rewrite(self, path: Path, data: bytes) -> None:
        """Writes what a file begins with once more, in place, and syncs it."""
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            write_all(self, fd, data)
            os.fdatasync(fd)
        finally:
            os.close(fd)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def sync(self, fd: int) -> None:
        os.fdatasync(fd)

    def become(self, fd: int, other: int) -> None:
        """`fd` stands for the file of `other` from here on, and `other` for none: whoever uses `fd` need not know."""
        os.dup2(other, fd, inheritable=False)
        os.close(other)

    def close(self, fd: int) -> None:
        os.close(fd)

    def rename(self, path: Path, to: Path) -> None:
        os.rename(path, to)

    def remove(self, path: Path) -> None:
        os.unlink(path)

    def sync_folder(self, folder: Path) -> None:
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def write_all(disk: Disk, fd: int, data: bytes, close: bool = False) -> None:
    """Writes all of `data`, however little the disk takes at once."""
    try:
        written = 0
        while written < len(data):
            written += disk.write(fd, memoryview(data)[written:])
    finally:
        if close:
            disk.close(fd)


def is_numbered(name: str, suffix: str) -> bool:
    """Whether a file is called by a number, as a log's segments and snapshots are."""
    return name[:1].isdigit() and name.endswith(suffix)


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


DISK = RealDisk()
