"""FaasCache: keep-alive as greedy-dual caching."""

from __future__ import annotations

from nubes.functions.seams import FunctionView, InstanceView, KeepAlive
from nubes.kernel.policy import Paper, policy

PAPER = Paper(
    "faascache", "FaasCache", "FaasCache: Keeping Serverless Computing Alive with Greedy-Dual Caching", "ASPLOS 2021"
)


@policy("faascache", paper=PAPER)
class FaasCache(KeepAlive):
    """Keep instances until memory is short, then evict by `clock + freq * cost / size`.

    The clock of an instance is the global clock at its last use; the global clock is the priority of the last victim.
    A call without an idle instance always starts a new one.
    """

    def __init__(self) -> None:
        self.clock = 0.0
        self.clocks: dict[int, float] = {}  # instance -> global clock when it was last used

    def arrived(self, f: FunctionView, now: float) -> None:
        pass

    def dispatched(self, instance: InstanceView, how: int, waited_s: float, now: float) -> None:
        self.clocks[instance.id] = self.clock

    def priority(self, instance: InstanceView, now: float) -> float:
        f = instance.function
        cost = f.cold_start_s or 1.0
        return self.clocks.get(instance.id, self.clock) + f.arrivals * cost / (f.spec.memory_bytes / 2**20)

    def evicted(self, instance: InstanceView, priority: float) -> None:
        self.clock = max(self.clock, priority)
        self.clocks.pop(instance.id, None)
