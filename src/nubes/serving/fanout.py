"""One request to many leaves: a few first, then all; and no waiting for the last."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf


class FanOut:
    """Sans-I/O: says which leaves to ask, and when the whole is done. Leaves are numbered from 0.

    `canaries` leaves are asked first, and the others only when all of these answered well within `patience_s`: a
    request that kills whoever serves it stops there. It is done when a share `enough` of the leaves answered well, or
    none is left that could, or after `deadline_s`; an answer of less than all leaves is not `complete`.
    """

    __slots__ = (
        "began_s",
        "canaries",
        "deadline_s",
        "done",
        "enough",
        "failed",
        "good",
        "leaves",
        "patience_s",
        "wide",
    )

    def __init__(
        self, leaves: int, canaries: int = 0, patience_s: float = inf, enough: float = 1.0, deadline_s: float = inf
    ) -> None:
        self.leaves = leaves
        self.canaries = min(canaries, leaves)
        self.patience_s = patience_s
        self.enough = max(1, ceil(enough * leaves - 1e-9))
        self.deadline_s = deadline_s
        self.began_s = 0.0
        self.good = 0
        self.failed = 0
        self.wide = False
        self.done = False

    @property
    def complete(self) -> bool:
        return self.good == self.leaves

    def start(self, now: float) -> Sequence[int]:
        """The leaves to ask now."""
        self.began_s = now
        if self.canaries:
            return range(self.canaries)
        self.wide = True
        return range(self.leaves)

    def answered(self, ok: bool, now: float) -> Sequence[int]:
        """A leaf answered, well or not; returns the leaves to ask now."""
        if self.done:
            return ()
        self.good += ok
        self.failed += not ok
        if self.wide:
            self.done = self.good >= self.enough or self.good + self.failed == self.leaves
            return ()
        if self.failed or now > self.began_s + self.patience_s:
            self.done = True
            return ()
        if self.good < self.canaries:
            return ()
        self.wide = True
        self.done = self.good >= self.enough
        return () if self.done else range(self.canaries, self.leaves)

    def next_s(self) -> float:
        """When to ask `expired` if it is not done by then."""
        at = self.began_s + self.deadline_s
        return at if self.wide else min(at, self.began_s + self.patience_s)

    def expired(self, now: float) -> None:
        """Time passed."""
        if now >= self.next_s():
            self.done = True


def slow_share(one: float, leaves: int) -> float:
    """The share of whole requests that are slow if each leaf is with probability `one`: 1 - (1 - one)^leaves."""
    return 1.0 - (1.0 - one) ** leaves
