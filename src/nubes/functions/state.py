"""The state of the functions controller, as plain objects."""

from __future__ import annotations

from collections import deque
from math import floor, inf

from nubes.functions.events import Submitted
from nubes.functions.seams import CallView, FunctionView, InstanceView, KeepAlive
from nubes.functions.spec import FunctionSpec


class Call(CallView):
    """A call from its arrival until it is resolved."""

    __slots__ = (
        "also", "asked", "function", "hop", "input", "instance", "keep", "key", "losses", "method", "owner", "route", "started_s",
    )  # fmt: skip

    def __init__(self, event: Submitted, function: Function, now: float) -> None:
        self.id = event.call  # set here rather than by the base: a call is made for every arrival
        self.arrived_s = now
        self.attempt = 1
        self.function = function
        self.asked = function.name  # what the caller asked for, before any route
        self.keep = event.keep
        self.input = event.input
        self.method = event.method
        self.route = event.route
        self.hop = False  # its input is the output of the step before
        self.key = event.key
        self.owner = event.owner
        self.instance = 0  # 0 while it waits
        self.started_s = 0.0
        self.losses = 0  # instances lost under it
        self.also: tuple[int, ...] = ()  # later calls with the same idempotency key


class Instance(InstanceView):
    """One process of a function."""

    __slots__ = ("calls", "expire_s", "node", "ready", "stopping", "version", "wake_s")
    function: Function

    def __init__(self, id: int, function: Function, now: float) -> None:
        super().__init__(id, function, now)
        self.calls: dict[int, float] = {}  # call -> when it was dispatched
        self.version = function.version
        self.node = 0
        self.ready = False
        self.stopping = False
        self.expire_s = inf  # when its keep-alive runs out
        self.wake_s = inf  # when its pending timer fires; one is enough, it is set anew if it fires too early


class Function(FunctionView):
    """One pool of interchangeable instances."""

    __slots__ = (
        "app", "blocked", "cpu", "failures", "held_s", "instances", "keep_alive", "last_start_s", "open", "prewarm", "room", "short",
        "variant", "version", "waiting",
    )  # fmt: skip

    def __init__(self, name: str, spec: FunctionSpec, variant: str, version: int, keep_alive: KeepAlive) -> None:
        super().__init__(name, spec)
        self.app = spec.name.partition("/")[0]
        self.variant = variant
        self.become(spec, version, keep_alive)
        self.instances: dict[int, Instance] = {}
        self.open: dict[int, Instance] = {}  # ready, with room for a call; the last in is the first out
        self.waiting: deque[Call] | list[tuple[tuple[float, ...], int, Call]] = deque()
        self.blocked = False  # its calls wait for CPU or memory
        self.short = False  # has fewer instances than it asked to have, and waits for CPU or memory
        self.held_s = inf  # when its pending admission or batching timer fires
        self.last_start_s = -inf  # when the newest instance was started
        self.prewarm = 0  # counts the pre-warm timers, so that an outdated one is known
        self.failures = 0  # starts in a row that failed

    def become(self, spec: FunctionSpec, version: int, keep_alive: KeepAlive) -> None:
        """Takes the form that a deployment gives it."""
        self.spec = spec
        self.version = version
        self.keep_alive = keep_alive
        self.cpu = floor(spec.cpu * 2**20) / 2**20  # what it takes, such that sums are exact
        self.room = 1 if spec.batching or spec.single_use else spec.concurrency  # dispatches an instance takes at once


class Result:
    """The answer of a durable call, kept until it is forgotten."""

    __slots__ = ("at", "function", "output", "reason", "status")

    def __init__(self, at: float, function: str, status: str, reason: str, output: bytes) -> None:
        self.at = at
        self.function = function
        self.status = status
        self.reason = reason
        self.output = output
