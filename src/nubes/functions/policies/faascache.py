"""FaasCache: keep-alive as greedy-dual caching."""

from __future__ import annotations

from typing import Any

from nubes.functions.seams import FunctionView, InstanceView, KeepAlive
from nubes.kernel.policy import Paper, policy

PAPER = Paper(
    "faascache", "FaasCache", "FaasCache: Keeping Serverless Computing Alive with Greedy-Dual Caching", "ASPLOS 2021"
)
CLOCKS = 100_000  # instances whose clocks are remembered at most; the ones with the lowest are forgotten first


class GreedyDual(KeepAlive):
    """Keep instances until memory is short, then evict by `clock + freq * cost / size`: calls, cold-start seconds, MiB.

    An instance's clock is the global clock at its last use; the global clock is the priority of the last victim. So
    what is not used ages without its priority ever being touched. `freq` counts anew once a function's last instance
    was evicted.
    """

    def __init__(self) -> None:
        self.clock = 0.0
        self.clocks: dict[int, float] = {}  # instance -> global clock when it was last used
        self.before: dict[str, int] = {}  # function -> calls before its last instance was evicted

    def dispatched(self, instance: InstanceView, how: int, waited_s: float, now: float) -> None:
        self.clocks[instance.id] = self.clock
        if len(self.clocks) > CLOCKS:  # instances also end without an eviction: crashed, replaced, used once
            keep = sorted(self.clocks, key=self.clocks.__getitem__)[CLOCKS // 2 :]
            self.clocks = {id: self.clocks[id] for id in sorted(keep)}

    def value(self, instance: InstanceView, now: float) -> float:
        """`freq * cost / size`: what keeping `instance` is worth, however recently it was used."""
        f = instance.function
        freq = f.arrivals - self.before.get(f.name, 0)
        return freq * (f.cold_start_s or 1.0) / (f.spec.memory_bytes / 2**20)

    def priority(self, instance: InstanceView, now: float) -> float:
        return self._clock_of(instance) + self.value(instance, now)

    def evicted(self, instance: InstanceView, priority: float) -> None:
        self.clock = max(self.clock, priority)
        self.clocks.pop(instance.id, None)
        f = instance.function
        if f.busy + f.idle + f.starting <= 1:  # this one, which counts as idle until it is stopped
            self.before[f.name] = f.arrivals

    def forgotten(self, f: FunctionView) -> None:
        self.before.pop(f.name, None)

    def _clock_of(self, instance: InstanceView) -> float:
        return self.clocks.get(instance.id, 0.0) if instance.uses else self.clock

    def scores(self, question: str, *view: Any) -> list[tuple[str, float]]:
        """The two terms of a priority."""
        if question != "priority":
            return []
        instance, now = view
        return [("clock", self._clock_of(instance)), ("value", self.value(instance, now))]


@policy("faascache", paper=PAPER)
class FaasCache(GreedyDual):
    """Greedy-dual eviction, and a start for every call that finds no idle instance, or for as many as one holds.

    As on the platform it was built into, such a call waits for its own start: it never takes a busy instance that
    falls idle in the meantime. Only calls for which there is no room to start anything take whatever comes free.
    """

    binds = True
