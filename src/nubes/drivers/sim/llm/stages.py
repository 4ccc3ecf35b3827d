"""A pipeline of devices in virtual time."""

from __future__ import annotations


class Stages:
    """A step passes through all stages, in each behind the steps before it. Several engines may share them.

    `busy_s` sums over the stages, `active_s` is the time in which any step is under way: what the stages idle of it
    are bubbles.
    """

    def __init__(self, count: int) -> None:
        self.free_s = [0.0] * count  # when each is through with the steps so far
        self.busy_s = 0.0
        self.active_s = 0.0

    def run(self, now: float, took_s: float) -> float:
        """When a step that begins now, and takes `took_s` in each stage, is through. Steps come in order."""
        free, before = self.free_s, self.free_s[-1]
        at = now
        for stage, since in enumerate(free):
            at = max(at, since) + took_s
            free[stage] = at
        self.busy_s += took_s * len(free)
        self.active_s += at - max(now, before)
        return at

    @property
    def bubbles(self) -> float:
        """The share of the stages' time in which they wait for a step that is in another stage."""
        return 1.0 - self.busy_s / (len(self.free_s) * self.active_s) if self.active_s else 0.0
