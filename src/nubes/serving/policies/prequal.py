"""Prequal: probes of requests in flight and latency, and a choice by heat and coolness."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from nubes.kernel.errors import UsageError
from nubes.kernel.policy import Paper, policy
from nubes.serving.estimates import Window
from nubes.serving.policies.probing import Entry, Pool
from nubes.serving.seams import ReplicaView

PAPER = Paper("prequal", "Prequal", "Load is not what you should balance: Introducing Prequal", "NSDI 2024")
RECENT = 128  # answers to probes of whose requests in flight the quantile is taken


@policy("prequal", paper=PAPER)
class Prequal(Pool):
    """Replicas with more requests in flight than a share `q` of recent answers are hot.

    Of the others the one that expects the least latency is chosen; if all are hot, the one with the fewest requests in
    flight. `q=0` goes by requests in flight only, which is as good or better where all replicas are alike; the more
    they differ in speed the more latency tells, and `q` of 0.75 to 0.84 pays; near 1 nobody is hot in time. Close to
    what the replicas can take at all, 0.5 to 0.6 is better. The rest of the arguments are those of the pool of probes:
    `probes` per request, its size, `remove` per request, `age` in seconds, `sync` to wait for a request's own probes,
    `idle` seconds without a request after which probes go out all the same.
    """

    def __init__(
        self, q: float = 0.84, probes: float = 3.0, pool: int = 16, remove: float = 1.0, age: float = 1.0,
        sync: bool = False, idle: float = 0.1, seed: int = 0,
    ) -> None:  # fmt: skip
        if not 0.0 <= q <= 1.0:
            raise UsageError(f"q={q:g} is no quantile.", "Use 0 (requests in flight only) to 1 (latency only).")
        super().__init__(probes, pool, remove, age, sync, idle, seed)
        self.q = q
        self.recent = Window(RECENT)

    def probed(self, replica: ReplicaView, rif: int, latency_s: float, now: float) -> None:
        self.recent.add(rif)
        super().probed(replica, rif, latency_s, now)

    @property
    def limit(self) -> float:
        """The most requests in flight of a replica that is cold."""
        if self.q == 0.0 or not self.recent:
            return -1.0
        return inf if self.q == 1.0 else self.recent.quantile(self.q)

    def best(self, pool: Sequence[Entry]) -> Entry:
        limit = self.limit
        cold = hot = None
        least, fewest = inf, inf
        for entry in pool:
            if entry.rif <= limit:
                if entry.latency_s < least:
                    cold, least = entry, entry.latency_s
            elif entry.rif < fewest:
                hot, fewest = entry, entry.rif
        found = cold or hot
        assert found is not None
        return found

    def worst(self, pool: Sequence[Entry]) -> Entry:
        limit = self.limit
        busiest = max(pool, key=lambda entry: entry.rif)
        return busiest if busiest.rif > limit else max(pool, key=lambda entry: entry.latency_s)
