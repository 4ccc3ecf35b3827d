"""The real log and plane, telling the oracle what goes through them."""

from __future__ import annotations

import zlib
from collections import Counter
from typing import TYPE_CHECKING

from nubes.drivers.local.plane import Plane
from nubes.kernel.log import Log
from nubes.kernel.message import Event

if TYPE_CHECKING:
    from nubes.drivers.sim.faults.world import World


class WatchedLog(Log):
    """Tells the oracle what was appended."""

    lineage: list[bytes]

    def append(self, body: bytes) -> int:
        number = super().append(body)
        self.lineage.append(body)
        return number


class WatchedPlane(Plane):
    """Tells the oracle what it is fed and what it resolves."""

    world: World
    clients: Counter[int]
    fed = 0

    def lasting(self, output: bytes) -> bytes | None:
        return output if zlib.crc32(output) % 4 else None  # its disk is full, say

    def feed(self, event: Event, at: float = 0.0) -> None:
        record = self.journal.log.count
        self.world.oracle.feeds(event, record)
        self.world.last_record = record
        super().feed(event, at)
        self.fed += 1
        if self.world.tell is not None:
            self.world.note("event", f"{record}: {event}")
