"""A control plane's folder in /dev/shm: whoever holds the lock in it is alive; the others' are leftovers.

A control plane that was killed, and is never started again, leaves its folder behind, and with it memory in use. Any
other that starts removes it. Locks end with their process, so that no id is mistaken for that of a later process.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path

MEMORY = Path("/dev/shm")
LOCK = "lock"


class SharedFolder:
    """Makes the folder `nubes-<user>-<name>` and holds it until `close`; in `otherwise` where there is no /dev/shm."""

    def __init__(self, name: str, otherwise: Path, memory: Path = MEMORY) -> None:
        parent = memory if memory.is_dir() else otherwise
        prefix = f"nubes-{os.getuid()}-"
        remove_leftovers(parent, prefix)
        self.path = parent / (prefix + name)
        shutil.rmtree(self.path, ignore_errors=True)  # of an earlier life of this same control plane
        new = parent / f".{prefix}{name}-{os.getpid()}"  # not seen by others before it is locked
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        self._lock = os.open(new / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.rename(self.path)

    def close(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def remove_leftovers(parent: Path, prefix: str) -> list[Path]:
    """Removes folders whose owner is certainly dead: their lock is free. Returns them."""
    return [path for path in sorted(parent.glob(f"{prefix}*")) if _removed(path)]


def _removed(path: Path) -> bool:
    """Works on the folder that was looked at, even if another comes to stand under its name in the meantime."""
    with ExitStack() as opened:
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            opened.callback(os.close, folder)
            lock = os.open(LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            opened.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False  # its owner lives, or it is none of ours
        for name in os.listdir(folder):
            with suppress(OSError):
                os.unlink(name, dir_fd=folder)
        with suppress(OSError):
            path.rmdir()
        return True
