"""Balancing rules that need nothing of replicas but what the chooser sees itself, or a report now and then."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import ClassVar

from nubes.kernel.policy import policy
from nubes.kernel.rng import rng
from nubes.serving.seams import SMOOTHING, Balancing, Hedging, Probe, ReplicaView, Report


@policy("latest")
class Latest(Balancing):
    """The replica that answered last: few stay busy, and those that are not needed fall idle and can go."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed  # nothing is drawn

    def choose(self, replicas: Sequence[ReplicaView], now: float, answers: Sequence[Probe] = ()) -> ReplicaView:
        return max(replicas, key=lambda r: r.since_s)


@policy("random")
class Uniform(Balancing):
    """Any replica, all alike."""

    def __init__(self, seed: int = 0) -> None:
        self.draw = rng(seed, "balancing")

    def choose(self, replicas: Sequence[ReplicaView], now: float, answers: Sequence[Probe] = ()) -> ReplicaView:
        return replicas[int(self.draw.random() * len(replicas))]


@policy("round-robin")
class RoundRobin(Balancing):
    """One after the other, in the order of their ids; the first is any, or all choosers would begin with the same."""

    def __init__(self, seed: int = 0) -> None:
        self.draw = rng(seed, "balancing")
        self.last: int | None = None

    def choose(self, replicas: Sequence[ReplicaView], now: float, answers: Sequence[Probe] = ()) -> ReplicaView:
        last = self.last
        if last is None:
            chosen = replicas[int(self.draw.random() * len(replicas))]
        else:
            chosen = min(replicas, key=lambda r: (r.id <= last, r.id))
        self.last = chosen.id
        return chosen


@policy("weighted-round-robin")
class WeightedRoundRobin(Balancing):
    """In turn, in proportion to requests answered per CPU used: balances CPU utilisation, as most balancers do.

    A replica's weight is its rate / its utilisation, both smoothed; its next turn is 1 / weight after its last.
    """

    poll_s: ClassVar[float] = 1.0

    def __init__(self, smoothing: float = SMOOTHING, seed: int = 0) -> None:
        self.smoothing = smoothing
        self.draw = rng(seed, "balancing")
        self.known: dict[int, tuple[float, float]] = {}  # replica -> rate, utilisation
        self.step: dict[int, float] = {}  # replica -> 1 / weight
        self.turns: dict[int, float] = {}
        self.turn = 0.0

    def choose(self, replicas: Sequence[ReplicaView], now: float, answers: Sequence[Probe] = ()) -> ReplicaView:
        turns, step = self.turns, self.step
        try:
            chosen = min(replicas, key=lambda r: turns[r.id])
        except KeyError:  # some are new
            usual = sum(step.values()) / len(step) if step else 1.0
            for r in replicas:
                if r.id not in turns:
                    turns[r.id] = self.turn + self.draw.random() * step.setdefault(r.id, usual)
            chosen = min(replicas, key=lambda r: turns[r.id])
        at = turns[chosen.id]
        if at > self.turn:
            self.turn = at
        turns[chosen.id] = self.turn + step[chosen.id]  # one that was full for long does not catch up
        return chosen

    def reported(self, replica: ReplicaView, report: Report, now: float) -> None:
        rate, used = self.known.get(replica.id, (report.rate, report.utilisation))
        rate += (report.rate - rate) * self.smoothing
        used += (report.utilisation - used) * self.smoothing
        self.known[replica.id] = rate, used
        if rate > 0.0 and used > 0.0:
            self.step[replica.id] = used / rate

    def left(self, replica: ReplicaView) -> None:
        for known in (self.known, self.step, self.turns):
            known.pop(replica.id, None)


@policy("least-loaded")
class LeastLoaded(Balancing):
    """The fewest requests in flight from this chooser; any of those that tie."""

    def __init__(self, seed: int = 0) -> None:
        self.draw = rng(seed, "balancing")

    def choose(self, replicas: Sequence[ReplicaView], now: float, answers: Sequence[Probe] = ()) -> ReplicaView:
        least = min([r.rif for r in replicas])
        tied = [r for r in replicas if r.rif == least]
        return tied[int(self.draw.random() * len(tied))]


@policy("two-choices")
class TwoChoices(Balancing):
    """The one of two random replicas with fewer requests in flight from this chooser."""

    def __init__(self, seed: int = 0) -> None:
        self.draw = rng(seed, "balancing")

    def choose(self, replicas: Sequence[ReplicaView], now: float, answers: Sequence[Probe] = ()) -> ReplicaView:
        one, other = two(replicas, self.draw)
        return one if one.rif <= other.rif else other


@policy("yarp")
class Yarp(Balancing):
    """The one of two random replicas that had fewer requests in flight, of all clients, when it was polled last."""

    poll_s: ClassVar[float] = 0.5

    def __init__(self, seed: int = 0) -> None:
        self.draw = rng(seed, "balancing")
        self.rif: dict[int, int] = {}

    def choose(self, replicas: Sequence[ReplicaView], now: float, answers: Sequence[Probe] = ()) -> ReplicaView:
        one, other = two(replicas, self.draw)
        return one if self.rif.get(one.id, 0) <= self.rif.get(other.id, 0) else other

    def reported(self, replica: ReplicaView, report: Report, now: float) -> None:
        self.rif[replica.id] = report.rif

    def left(self, replica: ReplicaView) -> None:
        self.rif.pop(replica.id, None)


@policy("none")
class NoHedging(Hedging):
    """Every request is sent once."""


def two(replicas: Sequence[ReplicaView], draw: Random) -> tuple[ReplicaView, ReplicaView]:
    """Two different ones, if there are two."""
    n = len(replicas)
    first = int(draw.random() * n)
    second = int(draw.random() * (n - 1)) if n > 1 else first
    return replicas[first], replicas[second + (n > 1 and second >= first)]
