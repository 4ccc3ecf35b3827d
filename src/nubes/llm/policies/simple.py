"""What to keep of the KV cache: everything until memory is wanted, or nothing."""

from __future__ import annotations

from nubes.kernel.policy import policy
from nubes.llm.scheduling.sequence import Sequence
from nubes.llm.seams import Ordering, Retention


@policy("lru")
class LeastRecentlyUsed(Retention):
    """KV is kept by content; what was not used for longest goes first, and of one sequence its end."""


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
