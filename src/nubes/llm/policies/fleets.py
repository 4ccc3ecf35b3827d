"""Simple policies for fleets: who gets a request, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence as Many

from nubes.kernel.policy import policy
from nubes.llm.cluster.member import Member
from nubes.llm.cluster.seams import Ask, Migration, Move, Routing, Scaling


@policy("round-robin")
class RoundRobin(Routing):
    """One after the other."""

    def __init__(self) -> None:
        self._last = -1

    def choose(self, ask: Ask, members: Many[Member], now: float) -> Member | None:
        later = [m for m in members if m.number > self._last]
        chosen = min(later or members, key=lambda m: m.number)
        self._last = chosen.number
        return chosen


@policy("least-loaded")
class LeastLoaded(Routing):
    """The engine with the fewest requests."""

    def choose(self, ask: Ask, members: Many[Member], now: float) -> Member | None:
        return min(members, key=lambda m: (m.load, m.number))


@policy("memory-load")
class MemoryLoad(Routing):
    """The engine with the least KV memory used and wanted by its queue: INFaaS with that load (INFaaS++)."""

    def choose(self, ask: Ask, members: Many[Member], now: float) -> Member | None:
        return min(members, key=lambda m: (m.report.blocks - m.report.free + m.report.queued_blocks, m.number))


@policy("none")
class Stay(Migration):
    """A request ends where it began."""

    def moves(self, members: Many[Member], now: float) -> list[Move]:
        return []


@policy("fixed")
class Fixed(Scaling):
    """As many engines as were declared."""

    def change(self, members: Many[Member], starting: int, now: float) -> int:
        return 0
