"""What a simulation of replicas needs to know of them."""

from __future__ import annotations

from math import exp, inf

import msgspec


class Machines(msgspec.Struct, frozen=True):
    """Replicas that share their processors among the requests they hold, beside others on the same machines.

    Each has `cores` of its own; a request runs on one at most. A share `full` of them has no more than that; what the
    others can borrow is a share, uniform from 0 to `borrow`, of as many cores again, drawn anew about every
    `redraw_s`. For a share `slow` of the replicas everything takes `slowdown` times the work.
    """

    replicas: int = 100
    cores: float = 8.0
    full: float = 0.2
    borrow: float = 1.0
    redraw_s: float = 1.0
    slow: float = 0.0
    slowdown: float = 2.0


class Demand(msgspec.Struct, frozen=True):
    """Requests of many clients, at random times; the work of each is normal, and 0 if that is negative.

    `load` is in terms of what replicas get done on the cores that they have of their own.
    """

    load: float
    seconds: float
    clients: int = 100
    work_s: float = 0.08
    spread_s: float = 0.08
    deadline_s: float = 5.0
    network_s: float = 0.0005  # one way


class Leaf(msgspec.Struct, frozen=True):
    """How long a leaf works on a request: lognormal around `median_s`; a share `stalls` takes `stall_s` more.

    Each leaf is there `replicas` times. A replica that `queues` works on one request at a time, in order of arrival,
    and ends what it began; else it works on all that it has.
    """

    median_s: float = 0.01
    sigma: float = 0.5
    stalls: float = 0.0
    stall_s: float = 1.0
    replicas: int = 3
    queues: bool = False

    @property
    def mean_s(self) -> float:
        return self.median_s * exp(self.sigma**2 / 2.0) + self.stalls * self.stall_s


class Tree(msgspec.Struct, frozen=True):
    """Requests at random times that each ask all `leaves`; the rest is how `nubes.serving.fanout.FanOut` is set."""

    leaves: int = 100
    rate: float = 10.0  # whole requests a second
    requests: int = 5000
    network_s: float = 0.0005  # one way
    canaries: int = 0
    patience_s: float = inf
    enough: float = 1.0
    deadline_s: float = inf
