"""Probes in a pool, as Prequal keeps them, and the older rules that its authors gave the same pool."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, inf

from nubes.kernel.policy import policy
from nubes.kernel.rng import rng
from nubes.serving.seams import Balancing, Probe, ReplicaView

FORGIVE_S = 5.0  # time constant with which errors are forgotten
SLOWER = 100.0  # a replica whose every answer is an error counts as so many times slower and busier


class Entry:
    """A probe's answer in the pool."""

    __slots__ = ("at", "latency_s", "left", "replica", "rif")

    def __init__(self, replica: ReplicaView, rif: float, latency_s: float, at: float, left: float) -> None:
        self.replica = replica
        self.rif = rif
        self.latency_s = latency_s
        self.at = at
        self.left = left  # uses


class Pool(Balancing):
    """Each request fires `probes` probes at random replicas and does not wait: it takes from the pool what is there.

    An answer leaves the pool `age` seconds after it came, after as many uses as it takes for the pool to keep its
    size, or when a fresher one of its replica comes; and with each request `remove` answers leave, in turn the oldest
    and the worst. With `sync` a request waits for all but one of its own probes and takes the best of these instead.
    Replicas that answer with errors are held for slower and busier than they say, or the fast ones would draw all
    traffic.
    """

    def __init__(
        self, probes: float = 3.0, pool: int = 16, remove: float = 1.0, age: float = 1.0, sync: bool = False,
        idle: float = 0.1, seed: int = 0,
    ) -> None:  # fmt: skip
        self.rate = probes
        self.size = pool
        self.remove = remove
        self.age_s = age
        self.waits = max(1, int(probes) - 1) if sync else 0
        self.idle_s = 0.0 if sync else idle
        self.draw = rng(seed, "balancing")
        self.pool: list[Entry] = []  # the oldest first
        self.replicas = 1
        self.removed = 0
        self.owed = 0.0
        self.errors: dict[int, tuple[float, float]] = {}  # replica -> share of errors, when that was so

    # -- probes --------------------------------------------------------------------------------------------------------

    def probes(self, replicas: Sequence[ReplicaView], now: float) -> Sequence[ReplicaView]:
        n = self.replicas = len(replicas)
        draw = self.draw.random
        count = int(self.rate)
        if self.rate != count and draw() < self.rate - count:
            count += 1
        if count >= n:
            first = int(draw() * n)
            return [*replicas[first:], *replicas[:first]]
        chosen: list[int] = []
        while len(chosen) < count:
            index = int(draw() * n)
            if index not in chosen:
                chosen.append(index)
        return [replicas[index] for index in chosen]

    def probed(self, replica: ReplicaView, rif: int, latency_s: float, now: float) -> None:
        if self.waits:
            return
        pool = self.pool
        for entry in pool:
            if entry.replica is replica:
                pool.remove(entry)
                break
        else:
            if len(pool) >= self.size:
                del pool[0]
        pool.append(self._entry(replica, rif, latency_s, now))

    def _entry(self, replica: ReplicaView, rif: float, latency_s: float, now: float) -> Entry:
        if self.errors:
            bad = self.bad(replica, now)
            if bad > 0.0:
                rif = (rif + 1.0) * (1.0 + SLOWER * bad)
                latency_s = max(latency_s, replica.latency_s, 0.001) * (1.0 + SLOWER * bad)
        return Entry(replica, rif, latency_s, now, self._uses())

    def _uses(self) -> float:
        """How often an answer may be used: 2 / what comes in and is not removed; fractions are rounded at random."""
        gain = (1.0 - min(1.0, self.size / self.replicas)) * self.rate - self.remove
        if gain <= 0.0:
            return inf
        uses = max(1.0, 2.0 / gain)
        whole = int(uses)
        return whole + (self.draw.random() < uses - whole)

    # -- the choice ----------------------------------------------------------------------------------------------------

    def choose(self, replicas: Sequence[ReplicaView], now: float, answers: Sequence[Probe] = ()) -> ReplicaView:
        if self.waits:
            asked = [self._entry(a.replica, a.rif, a.latency_s, now) for a in answers if a.replica.open]
            return self.best(asked).replica if asked else replicas[int(self.draw.random() * len(replicas))]
        pool = self.pool
        oldest = now - self.age_s
        while pool and pool[0].at < oldest:
            del pool[0]
        pool = [entry for entry in pool if entry.replica.open]
        if len(pool) < min(2, len(replicas)):
            chosen = replicas[int(self.draw.random() * len(replicas))]
        else:
            entry = self.best(pool)
            chosen = entry.replica
            entry.rif += 1
            entry.left -= 1
            if entry.left <= 0:
                self.pool.remove(entry)
        self._remove()
        return chosen

    def _remove(self) -> None:
        self.owed += self.remove
        while self.owed >= 1.0:
            self.owed -= 1.0
            if len(self.pool) <= min(2, self.replicas - 1):  # fewer would leave no choice
                continue
            self.removed += 1
            if self.removed % 2:
                del self.pool[0]
            else:
                self.pool.remove(self.worst(self.pool))

    def best(self, pool: Sequence[Entry]) -> Entry:
        """The one to use, of at least one."""
        raise NotImplementedError

    def worst(self, pool: Sequence[Entry]) -> Entry:
        """The one that the pool can do without."""
        raise NotImplementedError

    # -- errors --------------------------------------------------------------------------------------------------------

    def answered(self, replica: ReplicaView, ok: bool, latency_s: float, now: float) -> None:
        if ok and replica.id not in self.errors:
            return
        share = self.bad(replica, now)
        share += ((not ok) - share) * 0.1
        if share < 0.001:
            self.errors.pop(replica.id, None)
        else:
            self.errors[replica.id] = (share, now)

    def bad(self, replica: ReplicaView, now: float) -> float:
        """The share of errors among a replica's latest answers; as time passes they are forgotten."""
        share, since = self.errors.get(replica.id, (0.0, now))
        return share * exp((since - now) / FORGIVE_S) if share else 0.0

    def left(self, replica: ReplicaView) -> None:
        self.errors.pop(replica.id, None)
        self.pool = [entry for entry in self.pool if entry.replica is not replica]


class Scored(Pool):
    """A pool in which one number decides."""

    def score(self, entry: Entry) -> float:
        raise NotImplementedError

    def best(self, pool: Sequence[Entry]) -> Entry:
        return min(pool, key=self.score)

    def worst(self, pool: Sequence[Entry]) -> Entry:
        return max(pool, key=self.score)


@policy("linear")
class Linear(Scored):
    """The least (1 - weight) * latency + weight * unit * requests in flight, over a pool of probes."""

    def __init__(self, weight: float = 0.5, unit: float = 0.1, probes: float = 3.0, seed: int = 0) -> None:
        super().__init__(probes, seed=seed)
        self.weight = weight
        self.unit_s = unit

    def score(self, entry: Entry) -> float:
        return (1.0 - self.weight) * entry.latency_s + self.weight * self.unit_s * entry.rif


@policy("c3")
class C3(Scored):
    """Cubic replica selection (Suresh et al., NSDI 2015), over a pool of probes.

    Score: q^3 * s with q = 1 + clients * own requests in flight + the replica's, and s the moving average of its
    answers here; the term R - s is 0, as what a replica that shares processors takes is what its answers take.
    """

    def __init__(self, clients: float = 1.0, probes: float = 3.0, seed: int = 0) -> None:
        super().__init__(probes, seed=seed)
        self.clients = clients

    def score(self, entry: Entry) -> float:
        q = 1.0 + self.clients * entry.replica.rif + entry.rif
        return q * q * q * entry.replica.latency_s
