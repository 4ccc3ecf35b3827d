"""The state of the functions controller, as plain objects."""

from __future__ import annotations

from collections import deque
from math import inf

from nubes.functions.seams import CallView, FunctionView, InstanceView, KeepAlive
from nubes.functions.spec import FunctionSpec


class Call(CallView):
    """A call from its arrival until it is resolved."""

    __slots__ = (
        "also", "asked", "cold", "finished", "function", "input", "instance", "keep", "key", "losses", "method", "owner", "route", "started_s",
    )  # fmt: skip

    def __init__(self, id: int, function: Function, now: float) -> None:
        super().__init__(id, now)
        self.function = function
        self.asked = function.name  # what the caller asked for, before any route
        self.keep = False
        self.input = b""
        self.method = ""
        self.route: tuple[str, ...] = ()
        self.key = ""
        self.owner = 0
        self.instance = 0  # 0 while it waits
        self.started_s = 0.0
        self.losses = 0  # instances lost under it
        self.cold = False  # waited for a new instance at some point
        self.finished = False  # resolved, though an instance may still run it
        self.also: list[int] = []  # later calls with the same idempotency key


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

    __slots__ = ("app", "blocked", "failures", "held_s", "instances", "keep_alive", "open", "prewarm", "variant", "version", "waiting")

    def __init__(self, name: str, spec: FunctionSpec, variant: str, version: int, keep_alive: KeepAlive) -> None:
        super().__init__(name, spec)
        self.app = spec.name.partition("/")[0]
        self.variant = variant
        self.version = version
        self.keep_alive = keep_alive
        self.instances: dict[int, Instance] = {}
        self.open: dict[int, Instance] = {}  # ready, with room for a call; the last in is the first out
        self.waiting: deque[Call] | list[tuple[tuple[float, ...], int, Call]] = deque()
        self.blocked = False  # waits for CPU or memory
        self.held_s = inf  # when its pending admission or batching timer fires
        self.prewarm = 0  # counts the pre-warm timers, so that an outdated one is known
        self.failures = 0  # starts in a row that failed


class Result:
    """The answer of a durable call, kept until it is forgotten."""

    __slots__ = ("at", "function", "output", "reason", "status")

    def __init__(self, at: float, function: str, status: str, reason: str, output: bytes) -> None:
        self.at = at
        self.function = function
        self.status = status
        self.reason = reason
        self.output = output
