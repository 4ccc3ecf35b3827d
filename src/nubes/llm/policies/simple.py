"""What to keep of the KV cache: everything until memory is wanted, or nothing."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from nubes.kernel.policy import policy
from nubes.llm.scheduling.sequence import Sequence
from nubes.llm.scheduling.state import State
from nubes.llm.seams import Ordering, Retention


@policy("lru")
class LeastRecentlyUsed(Retention):
    """KV is kept by content; what was not used for longest goes first, and of one sequence its end."""


@policy("host-lru")
class HostLeastRecentlyUsed(Retention):
    """The same in two tiers: what gives way goes to host memory, and is dropped when it was unused for longest there.

    While less than `low` of the device's memory can be had at once, `batch` blocks a step are copied ahead of time.
    """

    tiered = True

    def __init__(self, low: float = 0.25, batch: int = 32) -> None:
        self.low = low
        self.batch = batch

    def copies(self, state: State, now: float) -> Iterable[int]:
        pool, copied = state.pool, state.copied
        missing = int(self.low * pool.size) - len(pool.free) - len(copied)
        alone = (block for block in pool.idle if block not in copied)
        return list(islice(alone, max(0, min(missing, self.batch))))


@policy("none")
class Nothing(Retention):
    """KV is dropped with its sequence."""

    shares = False


@policy("fcfs")
class FirstCome(Ordering):
    """First come, first served."""


@policy("priority")
class Priority(Ordering):
    """The lowest priority number first; first come, first served among equals."""

    def rank(self, sequence: Sequence, now: float) -> tuple[float, ...]:
        return (sequence.priority, sequence.arrived_s)
