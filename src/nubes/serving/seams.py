"""The seams of replicated services, and what their policies see.

Whoever sends requests to replicas has one policy object of each kind: a client among many, or the control plane. It
keeps a `ReplicaView` of every replica, tells the policies what it observes, and does what they decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import ClassVar

import msgspec

from nubes.kernel.policy import Policy, decision, seam

SMOOTHING = 0.2  # weight of the newest sample in moving averages


class ReplicaView:
    """One replica, as far as the chooser knows it. Times are seconds."""

    __slots__ = ("id", "latency_s", "machine", "open", "rif", "since_s", "zone")

    def __init__(self, id: int, machine: str = "", zone: str = "") -> None:
        self.id = id
        self.machine = machine
        self.zone = zone
        self.open = True  # whether it may take a request now
        self.rif = 0  # requests in flight from this chooser
        self.latency_s = 0.0  # moving average of its answers; 0 until the first
        self.since_s = 0.0  # when it answered last, or got the first of those in flight if that was later

    def sent(self, now: float) -> None:
        """A request went to it."""
        if not self.rif:
            self.since_s = now
        self.rif += 1

    def answered(self, latency_s: float, now: float) -> None:
        """It answered one of them, or was told that it need not."""
        self.rif -= 1
        self.latency_s += (latency_s - self.latency_s) * (SMOOTHING if self.latency_s else 1.0)
        self.since_s = now

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ReplicaView) and self.id == other.id

    def __hash__(self) -> int:
        return self.id

    def __repr__(self) -> str:
        return f"replica {self.id} ({self.rif} in flight)"

    def freeze(self) -> ReplicaView:
        copy = ReplicaView.__new__(ReplicaView)
        for slot in ReplicaView.__slots__:
            setattr(copy, slot, getattr(self, slot))
        return copy


class Probe(msgspec.Struct, frozen=True, gc=False):
    """A replica's answer to a probe: its requests in flight, of all clients, and the latency to expect there."""

    replica: ReplicaView
    rif: int
    latency_s: float


class Report(msgspec.Struct, frozen=True, gc=False):
    """What a replica says of itself when it is polled: now, and on average since it was polled last."""

    rif: int
    rate: float  # requests answered a second
    utilisation: float  # CPU used / CPU reserved for it


@seam("balancing", default="latest")
class Balancing(Policy):
    """Which replica takes a request. A request asks `probes`, then `choose`; answers to probes come when they come."""

    poll_s: ClassVar[float] = 0.0  # how often every replica's `Report` is wanted; 0: never
    idle_s: float = 0.0  # after so long without a request `probes` is asked all the same; 0: never
    waits: int = 0  # answers to its probes that a request waits for before `choose`; 0: it does not wait
    probe_timeout_s: float = 0.003  # how long it waits for them at most; later answers are dropped

    def probes(self, replicas: Sequence[ReplicaView], now: float) -> Sequence[ReplicaView]:
        """Which replicas to probe now, for a request or because of `idle_s`."""
        return ()

    @decision
    def choose(self, replicas: Sequence[ReplicaView], now: float, answers: Sequence[Probe] = ()) -> ReplicaView:
        """One of `replicas`, which are at least one and all open. `answers`: those that the request waited for."""
        raise NotImplementedError

    def shadow(self, replicas: Sequence[ReplicaView], now: float) -> ReplicaView | None:
        """A replica that gets a copy of the request that is chosen for, whose answer nobody waits for.

        Asked only where a request may run twice. The copy is told to `sent` and `answered` like any other.
        """
        return None

    # Observations: override what the policy learns from.

    def probed(self, replica: ReplicaView, rif: int, latency_s: float, now: float) -> None:
        """A replica answered a probe. `latency_s` is 0 if it knows none yet."""

    def reported(self, replica: ReplicaView, report: Report, now: float) -> None:
        """A replica was polled."""

    def sent(self, replica: ReplicaView, now: float) -> None:
        """A request, or a copy of one, goes to a replica (`replica.rif` counts it already)."""

    def answered(self, replica: ReplicaView, ok: bool, latency_s: float, now: float) -> None:
        """It came back, well or not (`replica` has counted it). A copy that was called back did so then, and well."""

    def left(self, replica: ReplicaView) -> None:
        """The replica is gone."""


@seam("hedging", default="none")
class Hedging(Policy):
    """When a request gets a second copy on another replica. Used only for requests that may run twice.

    The first answer counts, and the other copies are called back. A copy never goes where one is, and to another
    machine if there is one.
    """

    copies: int = 0  # of one request, beside the first, at most
    tied: bool = False  # copies know of each other: the one that starts calls the others back from their queues

    @decision
    def delay_s(self, now: float) -> float:
        """How long the newest copy of a request is given before the next is due; `inf`: none is."""
        return inf

    def spend(self, now: float) -> float:
        """A copy is due: `now` if it may go (which is counted), else when to ask again; `inf`: never."""
        return now

    def sent(self, now: float) -> None:
        """A request goes out for the first time."""

    def answered(self, latency_s: float, now: float) -> None:
        """A request got its first answer, that long after it was sent for the first time."""
