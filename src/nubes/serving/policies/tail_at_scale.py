"""The Tail at Scale: copies of late requests, and probation for slow replicas."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import inf

from nubes.kernel.errors import UsageError
from nubes.kernel.policy import Paper, policy
from nubes.kernel.rng import rng
from nubes.kernel.units import seconds
from nubes.serving.estimates import Budget, Window
from nubes.serving.policies.simple import two
from nubes.serving.seams import Balancing, Hedging, Probe, ReplicaView

PAPER = Paper(
    "tail-at-scale", "Tail-tolerant requests (hedged, tied, canary, probation)", "The Tail at Scale",
    "Communications of the ACM 2013",
)  # fmt: skip
WINDOW = 1000  # requests of whose latency the percentile is taken
FEWEST = 20  # before so many were answered nothing is known
BURST, FIRST = 100.0, 5.0  # copies that may go at once when all went well for long; at the beginning
LOOK_S = 0.001  # how soon to ask again for a budget, at least
TIED_S = 0.001  # twice a mean network delay: by then the first copy has called the second back if it could start
TRIAL_S = 1.0  # after so long without a shadow a replica on probation gets a request of its own


@policy("tail-at-scale", paper=PAPER)
class Hedge(Hedging):
    """A request without an answer after the `percentile` of latency so far gets a copy, and the first answer counts.

    `delay` in place of the percentile is a fixed time. Copies are at most a share `budget` of requests: those that are
    due without it wait for it, and in the end only the latest still want it, as the others are answered meanwhile.
    `copies` is how many one request may get, each after the same delay; a single one leaves the square of the slow
    share, which tells again where hundreds of answers are waited for. `tied` sends the copy at once (after `delay`,
    1 ms unless said otherwise), and whichever is begun first calls the other back from its queue: for replicas that
    queue.
    """

    def __init__(
        self, percentile: float = 95.0, delay: str | float = 0, budget: float = 0.05, copies: int = 2,
        tied: bool = False,
    ) -> None:  # fmt: skip
        if not 0.0 < percentile < 100.0:
            raise UsageError(f"percentile={percentile:g} is none.", "Use one between 0 and 100; 95 is usual.")
        self.share = percentile / 100.0
        self.fixed_s = seconds(delay, "delay") or (TIED_S if tied else 0.0)
        self.copies = 1 if tied else copies
        self.tied = tied
        self.latencies = Window(WINDOW)
        self.budget = Budget(budget, BURST, FIRST)

    def delay_s(self, now: float) -> float:
        if self.fixed_s:
            return self.fixed_s
        return self.latencies.quantile(self.share) if len(self.latencies) >= FEWEST else inf

    def spend(self, now: float) -> float:
        if self.tied or self.budget.spend():
            return now
        return now + max(self.delay_s(now) / 4.0, LOOK_S)

    def sent(self, now: float) -> None:
        self.budget.earn()

    def answered(self, latency_s: float, now: float) -> None:
        if not self.fixed_s:
            self.latencies.add(latency_s)


@policy("tail-at-scale", paper=PAPER)
class Probation(Balancing):
    """The less loaded of two random replicas, of those that are not on probation for being slow.

    A replica goes on probation if the median of its latest `samples` latencies is more than `slower` times what is
    usual among the others, unless a share `most` of all is there already. There it gets a shadow of a request every
    `shadow` seconds, or where requests may not run twice a request of its own every second. It is back in turn once
    the median of as many of these is at most `back` times what is usual.
    """

    def __init__(
        self, slower: float = 3.0, back: float = 1.5, samples: int = 8, shadow: str | float = 0.1, most: float = 0.5,
        seed: int = 0,
    ) -> None:  # fmt: skip
        self.slower = slower
        self.back = back
        self.samples = samples
        self.shadow_s = seconds(shadow, "shadow")
        self.most = most
        self.draw = rng(seed, "balancing")
        self.latest: dict[int, deque[float]] = {}
        self.medians: dict[int, float] = {}  # of replicas with enough samples
        self.out: dict[int, float] = {}  # replica on probation -> when it was tried last

    def choose(self, replicas: Sequence[ReplicaView], now: float, answers: Sequence[Probe] = ()) -> ReplicaView:
        if self.out:
            for r in replicas:
                if self.out.get(r.id, inf) <= now - TRIAL_S:
                    self.out[r.id] = now
                    return r
            replicas = [r for r in replicas if r.id not in self.out] or replicas
        one, other = two(replicas, self.draw)
        return one if one.rif <= other.rif else other

    def shadow(self, replicas: Sequence[ReplicaView], now: float) -> ReplicaView | None:
        for r in replicas:
            if self.out.get(r.id, inf) <= now - self.shadow_s:
                self.out[r.id] = now
                return r
        return None

    def answered(self, replica: ReplicaView, ok: bool, latency_s: float, now: float) -> None:
        id = replica.id
        usual = self.usual(id)
        latest = self.latest.setdefault(id, deque(maxlen=self.samples))
        latest.append(latency_s if ok else max(latency_s, 2.0 * self.slower * usual))  # a quick error is no answer
        if len(latest) < self.samples:
            return
        median = self.medians[id] = sorted(latest)[len(latest) // 2]
        if not usual:
            return
        if id in self.out:
            if median <= self.back * usual:
                del self.out[id]
        elif median > self.slower * usual and len(self.out) + 1 <= self.most * len(self.latest):
            self.out[id] = now
            latest.clear()
            del self.medians[id]

    def usual(self, id: int) -> float:
        """The median over the other replicas in turn of their median latency; 0 if none is known."""
        others = sorted([m for other, m in self.medians.items() if other != id and other not in self.out])
        return others[len(others) // 2] if others else 0.0

    def left(self, replica: ReplicaView) -> None:
        for known in (self.latest, self.medians, self.out):
            known.pop(replica.id, None)
