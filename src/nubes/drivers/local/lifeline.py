"""How every process that the control plane starts ends with it, even when it is killed.

The control plane holds a FIFO open for writing. Every process group has a description of its own of the reading end,
whose signal the kernel sends to the whole group when the last writer is gone.
"""

from __future__ import annotations

import fcntl
import os
import signal

_F_SETSIG = 10


class Lifeline:
    """The control plane's end."""

    def __init__(self, path: str) -> None:
        self.path = path
        os.mkfifo(path, 0o600)
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def close(self) -> None:
        """Ends every process that still hangs on it."""
        os.close(self._fd)


def hold(path: str) -> int:
    """Makes the calling process lead a group of its own, which ends when the control plane does.

    Returns the descriptor that it hangs on.
    """
    os.setpgid(0, 0)
    line = take(path)
    give(line, os.getpid())
    return line


def take(path: str) -> int:
    """A descriptor that one group can hang on: a signal has one owner for each time the FIFO was opened."""
    line = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(line, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(line, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    return line


def give(line: int, group: int) -> None:
    """Makes a group hang on it. The group's processes have inherited the descriptor, and the caller may close it."""
    fcntl.fcntl(line, fcntl.F_SETOWN, -group)
