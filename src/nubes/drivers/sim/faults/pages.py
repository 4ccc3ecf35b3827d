"""The bytes of a simulated file: as they are read, and as they are safe."""

from __future__ import annotations

import random

SECTOR = 64  # bytes that are written whole or not at all; small, as the records of simulations are
NEVER = 1 << 60


class File:
    """Bytes as read and as safe. `dirty`: from which offset on the next sync has something to write."""

    __slots__ = ("dirty", "now", "stable")

    def __init__(self) -> None:
        self.now = bytearray()
        self.stable = bytearray()
        self.dirty = NEVER

    def touched(self, offset: int) -> None:
        self.dirty = min(self.dirty, offset - offset % SECTOR)

    def safe(self) -> bytes:
        """What both a reader and a power cut find."""
        now, stable = self.now, self.stable
        if now.startswith(stable):
            return bytes(stable)
        return bytes(now[: next(n for n in range(len(stable)) if now[n : n + 1] != stable[n : n + 1])])

    def sync(self) -> None:
        """What is not dirty is not written again, even if an earlier sync failed to write it."""
        if self.dirty < NEVER:
            start = min(self.dirty, len(self.now))
            del self.stable[start:]
            self.stable.extend(bytes(start - len(self.stable)))
            self.stable += self.now[start:]
            self.dirty = NEVER

    def torn(self, r: random.Random) -> bytearray:
        """What a file may be once what was not synced was lost in part."""
        stable = self.stable
        kind = r.randrange(5)
        if kind == 0:
            return bytearray(stable)
        start = min(self.dirty, len(self.now))
        now = stable[:start].ljust(start, b"\0") + self.now[start:]  # what a sync that failed gave up stays as it is
        if kind == 1:
            return now
        size = r.randrange(min(len(now), len(stable)), max(len(now), len(stable)) + 1)
        if kind == 2:  # cut short
            return now[: max(size, start)] if size <= len(now) else stable[:size]
        torn = stable[:size].ljust(size, b"\0")
        for place in range(start, size, SECTOR):  # in any order
            if r.random() < 0.5:
                part = now[place : min(place + SECTOR, size)]
                torn[place : place + len(part)] = part
        return torn
