"""How every process that the control plane starts ends with it, even when it is killed.

The control plane holds a FIFO open for writing. Every process group hangs on a line of its own, an opened reading end:
when the last writer is gone, the kernel sends its signal to the whole group that owns it.
"""

from __future__ import annotations

import fcntl
import os
import signal

_F_SETSIG = 10


class Lifeline:
    """The control plane's end, and lines for instances."""

    def __init__(self, path: str) -> None:
        self.path = path
        os.mkfifo(path, 0o600)
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._free: list[int] = []

    def take(self) -> int:
        """A line for one instance: a descriptor."""
        return self._free.pop() if self._free else _line(self.path)

    def give_back(self, line: int) -> None:
        """The instance has ended: its line can be another's."""
        self._free.append(line)

    def close(self) -> None:
        """Ends every process that still hangs on it."""
        os.close(self._fd)
        for line in self._free:
            os.close(line)


def lead(line: int) -> None:
    """Makes the calling process lead a group of its own, which owns `line`."""
    os.setpgid(0, 0)
    fcntl.fcntl(line, fcntl.F_SETOWN, -os.getpid())


def hold(path: str) -> None:
    """As `lead`, with a line of its own."""
    lead(_line(path))


def _line(path: str) -> int:
    line = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(line, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(line, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    return line
