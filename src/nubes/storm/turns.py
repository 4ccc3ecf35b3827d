"""Processes take turns as tasks of the simulation did: every operation waits until those that came before it are done.

What they share is a number in a file, the place in that order that has been reached. If nothing moves for a while, what
happens for real has left the order, and whoever waits goes on.
"""

from __future__ import annotations

import fcntl
import mmap
import struct
from pathlib import Path

import msgspec

from nubes.storm import senses
from nubes.storm.attempts import Attempt

Place = tuple[int, str, int, int]  # id of the call, function, attempt, operations done

PATIENCE_S = 3.0
_LOOK_S = 0.0005
_number = struct.Struct("<q")


class Turns:
    """The order, as one process sees it."""

    def __init__(self, folder: Path) -> None:
        order = msgspec.json.decode((folder / "order").read_bytes(), type=tuple[Place, ...])
        self._places = {place: number for number, place in enumerate(order)}
        self._file = open(folder / "reached", "r+b")
        self._reached = mmap.mmap(self._file.fileno(), _number.size)

    @staticmethod
    def prepare(folder: Path, order: tuple[Place, ...]) -> None:
        (folder / "order").write_bytes(msgspec.json.encode(order))
        (folder / "reached").write_bytes(_number.pack(0))

    def wait(self, attempt: Attempt, after: int) -> None:
        """Returns when it is the turn of what makes `after` operations of this attempt."""
        mine = self._places.get((attempt.id, attempt.function, attempt.number, after))
        if mine is None:
            return
        seen, since = -1, 0.0
        while (reached := self._read()) < mine:
            now = senses.real_time()
            if reached != seen:
                seen, since = reached, now
            elif now - since > PATIENCE_S:
                break
            senses.real_sleep(_LOOK_S)

    def done(self, attempt: Attempt) -> None:
        """What makes the operations that this attempt has done is over."""
        mine = self._places.get((attempt.id, attempt.function, attempt.number, attempt.after))
        if mine is None:
            return
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._reached[:] = _number.pack(max(self._read(), mine + 1))
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def _read(self) -> int:
        return int(_number.unpack(self._reached[:])[0])
