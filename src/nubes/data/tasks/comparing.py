"""What ran in a pool, under other policies and on other machines, in virtual time."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nubes.data.tasks.models import Hardware, Work


class Outcome(msgspec.Struct, frozen=True):
    """What became of some work under a policy: from the first submission to the last end, and a task's mean latency."""

    placement: str
    makespan_s: float
    mean_latency_s: float
    moved_bytes: int


def compare(works: Sequence[Work], placements: Sequence[str], hardware: Hardware | None = None) -> list[Outcome]:
    """Replays works (`Pool.recorded`) under each placement policy, on 10 nodes with links of 1 Gbit/s if not named."""
    from nubes.drivers.sim.tasks import simulate

    outcomes = []
    for placement in placements:
        done = simulate(works, hardware or Hardware(10), placement)
        latencies = [done.done_s[work.task.id] - work.at_s for work in works]
        first = min((work.at_s for work in works), default=0.0)
        last = max(done.done_s.values(), default=first)
        mean = sum(latencies) / len(latencies) if latencies else 0.0
        outcomes.append(Outcome(placement, last - first, mean, done.moved_bytes))
    return outcomes
