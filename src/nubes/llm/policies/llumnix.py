"""Llumnix: requests move between engines while they run, by how many decode steps each engine has memory left for."""

from __future__ import annotations

from collections.abc import Sequence as Many
from math import inf

from nubes.kernel.errors import UsageError
from nubes.kernel.policy import Paper, policy
from nubes.llm.cluster.member import Member, Running
from nubes.llm.cluster.seams import Ask, Migration, Move, Routing, Scaling, Way

PAPER = Paper("llumnix", "Llumnix", "Llumnix: Dynamic Scheduling for Large Language Model Serving", "OSDI 2024")
WAYS: tuple[Way, ...] = ("live", "copy", "recompute", "tokens")


def freeness(member: Member, queue: bool = False, headroom: int = 0) -> float:
    """Decode steps that the batch can take before memory is out; negative if more is wanted than there is.

    The first in line counts as if it ran, or with `queue` all that wait. An engine that drains has none. `headroom`:
    tokens that are kept free where sequences of high priority run.
    """
    if member.draining:
        return -inf
    said = member.report
    wanted = said.queued_blocks if queue else said.head_blocks
    sharing = said.running + (said.waiting if queue else 0)
    tokens = (said.free - wanted) * said.block_size - (headroom if said.high else 0)
    return tokens / max(sharing, 1)


def headroom(member: Member, ideal: int) -> int:
    """Tokens to keep free beside sequences of high priority, for a load of `ideal` tokens; 0 if that is."""
    return max(0, member.report.blocks * member.report.block_size - ideal) if ideal else 0


@policy("llumnix", paper=PAPER)
class Freest(Routing):
    """The engine with the most decode steps left, all that wait there counted.

    Where sequences of high priority run, others find all memory but for `ideal` tokens taken (0: they do not).
    """

    def __init__(self, ideal: int = 0) -> None:
        self.ideal = ideal

    def choose(self, ask: Ask, members: Many[Member], now: float) -> Member | None:
        def left(member: Member) -> float:
            return freeness(member, queue=True, headroom=headroom(member, 0 if ask.priority < 0 else self.ideal))

        return max(members, key=lambda m: (left(m), -m.number))


@policy("llumnix", paper=PAPER)
class Rebalance(Migration):
    """From engines with less than `low` decode steps left to those with more than `high`, lowest to highest.

    The sequence that goes is of the lowest priority, and of those the shortest. Where sequences of high priority run,
    all memory but for `ideal` tokens counts as theirs (0: priorities count for nothing here).
    """

    def __init__(
        self, low: float = 30.0, high: float = 60.0, period: float = 0.05, way: str = "live", ideal: int = 0,
        last: int = 16,
    ) -> None:  # fmt: skip
        if way not in WAYS:
            raise UsageError(f"{way!r} is no way to move a request.", f"There are: {', '.join(WAYS)}.")
        self.low = low
        self.high = high
        self.period_s = period
        self.way: Way = way
        self.ideal = ideal
        self.last_blocks = last

    def moves(self, members: Many[Member], now: float) -> list[Move]:
        free = {m.number: freeness(m, headroom=headroom(m, self.ideal)) for m in members}
        sources = sorted(
            (m for m in members if free[m.number] < self.low and not m.sending), key=lambda m: free[m.number]
        )
        targets = sorted(
            (m for m in members if free[m.number] > self.high and not m.receiving), key=lambda m: -free[m.number]
        )
        moves = []
        for source, target in zip(sources, targets, strict=False):
            leaving = self.pick(source, target)
            if leaving is not None:
                moves.append(Move(leaving.id, source.number, target.number, self.way))
        return moves

    def pick(self, source: Member, target: Member) -> Running | None:
        """Lowest priority, then shortest; None if nothing that runs fits the target."""
        leaving = min(source.report.sequences, key=lambda s: (-s.priority, s.tokens, s.id), default=None)
        return leaving if leaving is not None and leaving.blocks < target.report.free else None


@policy("freeness", paper=PAPER)
class ByFreeness(Scaling):
    """One more engine when the mean of decode steps left stays below `low` for `patience` seconds, one less if above
    `high`.
    """

    def __init__(
        self, low: float = 10.0, high: float = 60.0, patience: float = 5.0, least: int = 1, most: int = 16
    ) -> None:
        self.low = low
        self.high = high
        self.patience_s = patience
        self.least = least
        self.most = most
        self.period_s = 1.0
        self._since_s = (inf, inf)  # when it fell below, and rose above

    def change(self, members: Many[Member], starting: int, now: float) -> int:
        count = len(members) + starting
        if not members:
            return 1 if not starting else 0
        mean = sum(freeness(m) for m in members) / len(members)
        below, above = self._since_s
        self._since_s = (min(below, now) if mean < self.low else inf, min(above, now) if mean > self.high else inf)
        if now - self._since_s[0] >= self.patience_s and count < self.most:
            self._since_s = (inf, inf)
            return 1
        if now - self._since_s[1] >= self.patience_s and len(members) > self.least and not starting:
            self._since_s = (inf, inf)
            return -1
        return 0
