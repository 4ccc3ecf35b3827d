"""The state of the functions controller, as plain objects."""

from __future__ import annotations

from collections import OrderedDict, deque
from math import floor, inf
from typing import Any

from nubes.cluster.seams import Disruption, MachineView, Placement, Request
from nubes.cluster.task_control import TaskControl
from nubes.functions.events import INNER_CALLS, Submitted
from nubes.functions.replicas import Replicas
from nubes.functions.seams import CallView, ColdStart, FunctionView, InstanceView, KeepAlive, Queueing
from nubes.functions.spec import FunctionSpec
from nubes.functions.tree import Tree
from nubes.kernel.message import Command
from nubes.kernel.policy import Policy, make
from nubes.serving.seams import Balancing, Hedging

BY_FUNCTION = ("keep-alive", "balancing", "hedging")  # seams where each function may have a policy of its own
# What stands in for a call's instance while it is queued, waits to be tried again, or waits for another's answer.
WAITS, RETRIES, SHARES = 0, -1, -2


class Call(CallView):
    """A call from its arrival until it is resolved."""

    __slots__ = (
        "also", "asked", "copies", "function", "hop", "input", "instance", "keep", "key", "losses", "method", "near",
        "owner", "route", "started_s",
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
        self.near = event.near
        self.instance = WAITS
        self.started_s = 0.0
        self.losses = 0  # instances lost under it
        self.also: tuple[int, ...] = ()  # later calls with the same idempotency key
        self.copies: tuple[int, ...] = ()  # instances that run it beside `instance`


class Machine(MachineView):
    """A machine and the instances on it."""

    __slots__ = ("goes_s", "instances")

    def __init__(self, id: int, cpu: float, memory_bytes: float, zone: str = "") -> None:
        super().__init__(id, cpu, memory_bytes, zone=zone)
        self.instances: dict[int, Instance] = {}
        self.goes_s = inf  # when it goes, whatever its instances can bear


class Instance(InstanceView):
    """One process of a function."""

    __slots__ = ("calls", "expire_s", "leaving", "machine", "node", "ready", "stopping", "version", "wake_s")
    function: Function

    def __init__(self, id: int, function: Function, machine: Machine, now: float) -> None:
        super().__init__(id, function, now)
        self.machine = machine
        self.calls: dict[int, float] = {}  # call -> when it was dispatched
        self.version = function.version
        self.node = 0
        self.ready = False
        self.leaving = False  # its function's task control lets it go: it ends after its calls
        self.stopping = False
        self.expire_s = inf  # when its keep-alive runs out
        self.wake_s = inf  # when its pending timer fires; one is enough, it is set anew if it fires too early

    def stays(self) -> bool:
        """Whether it may be given calls at all: it is not to go, and its machine can run it."""
        f, m = self.function, self.machine
        goes = self.outdated() if f.control is None or not self.ready else self.leaving
        return not goes and f.cpu <= m.cpu

    def outdated(self) -> bool:
        """Whether another is to take its place: it is of an earlier version, or its machine is to go."""
        return self.version != self.function.version or self.machine.draining

    def takes(self) -> bool:
        """Whether it may be given another call now."""
        return self.ready and self.load < self.function.room and self.stays()


class Function(FunctionView):
    """One pool of interchangeable instances."""

    __slots__ = (
        "ahead", "app", "blocked", "control", "cpu", "failures", "held_s", "instances", "keep_alive", "last_start_s",
        "open", "prewarm", "prewarm_s", "replicas", "request", "room", "short", "variant", "version", "waiting",
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
        self.prewarm_s = -inf  # when the newest of them fires
        self.failures = 0  # starts in a row that failed
        self.replicas: Replicas | None = None  # if calls are balanced or hedged by a policy
        self.control: TaskControl | None = None  # if it is not to lose all instances at once

    def become(self, spec: FunctionSpec, version: int, keep_alive: KeepAlive) -> None:
        """Takes the form that a deployment gives it."""
        self.spec = spec
        self.version = version
        self.keep_alive = keep_alive
        self.ahead = bool(spec.min_instances or spec.buffer_instances)  # wants instances ahead of calls
        self.cpu = floor(spec.cpu * 2**20) / 2**20  # what it takes, such that sums are exact
        group = spec.name if spec.min_instances > 1 else ""  # who has instances ahead of calls wants to be available
        self.request = Request(spec.name, self.cpu, spec.memory_bytes, group=group)
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


class State:
    """Everything the controller knows, and the policies that decide; the functions of this package change it."""

    def __init__(
        self,
        keep_alive: str | KeepAlive | None = None,
        queueing: str | Queueing | None = None,
        cold_start: str | ColdStart | None = None,
        cpu: float = inf,
        memory_bytes: float = inf,
        tree_share: float = 0.25,
        placement: str | Placement | None = None,
        machines: int = 1,
        balancing: str | Balancing | None = None,
        hedging: str | Hedging | None = None,
        disruption: str | Disruption | None = None,
    ) -> None:
        """`cpu` and `memory_bytes` are what each of the `machines` has to give."""
        self.keep_alives: dict[str, KeepAlive] = {"": self._make("keep-alive", keep_alive)}  # by their texts
        self.queueing: Queueing = self._make("queueing", queueing)
        self.placement: Placement = self._make("placement", placement)
        self.balancing: Balancing = self._make("balancing", balancing)  # of which each function makes one of its own
        self.hedging: Hedging = self._make("hedging", hedging)
        self.disruption: Disruption = self._make("disruption", disruption)  # so is this
        self.machines = {id: Machine(id, cpu, memory_bytes) for id in range(machines)}
        self.draining = 0  # machines that are to go
        self.tree_share = tree_share
        self.tree = Tree(self._make("cold-start", cold_start), memory_bytes * tree_share)
        self.tree.budgets.update(dict.fromkeys(self.machines, memory_bytes * tree_share))
        self.specs: dict[str, FunctionSpec] = {}
        self.apps: dict[str, tuple[int, tuple[str, ...], bool]] = {}  # name -> version, functions, ephemeral
        self.functions: dict[str, Function] = {}
        self.instances: dict[int, Instance] = {}
        self.calls: dict[int, Call] = {}
        self.results: OrderedDict[int, Result] = OrderedDict()  # a plain dict is slow to lose its first item
        self.keys: dict[tuple[str, str], int] = {}  # (function, idempotency key) -> its newest call
        self.aliases: dict[int, int] = {}  # call that waits for another's answer -> that one
        self.owners: dict[int, int] = {}  # of these, one that is not durable -> the client connection that waits for it
        self.chosen: dict[str, dict[str, str]] = {seam: {} for seam in BY_FUNCTION}  # what functions were switched to
        self.due: dict[str, float] = {}  # function -> when its schedule comes round
        self.unsettled: dict[str, Function] = {}  # whose task control has yet to hear of what this event changed
        self.late: dict[int, float] = {}  # call -> when it is late, and may get a copy
        self.blocked: list[tuple[tuple[float, ...], int, Function]] = []  # a heap of those that wait for room
        self.look_s = 0.0  # when next to look for parameterisations to forget
        self.sequence = 0  # tells apart what stands at the same place in a queue
        self.instance_ids = 0
        self.inner_calls = 0  # calls that nobody outside made
        self.ticks = 0  # counts the chains of ticks, so that an outdated one is known
        self.out: list[Command] = []  # commands of the event that is being handled

    def _make(self, seam: str, policy: str | Policy | None) -> Any:
        """Every policy comes from here, so that a controller that is looked into can wrap them."""
        return make(seam, policy)

    def inner_call(self) -> int:
        """The id of a call that nobody outside makes."""
        self.inner_calls += 1
        return INNER_CALLS + self.inner_calls

    @property
    def policies(self) -> dict[str, Policy]:
        """Who decides, by seam."""
        return {
            "keep-alive": self.keep_alives[""],
            "queueing": self.queueing,
            "cold-start": self.tree.policy,
            "placement": self.placement,
            "balancing": self.balancing,
            "hedging": self.hedging,
            "disruption": self.disruption,
        }

    @property
    def cpu(self) -> float:
        """What all machines have to give together; so with the next three."""
        return sum(m.cpu for m in self.machines.values())

    @property
    def memory_bytes(self) -> float:
        return sum(m.memory_bytes for m in self.machines.values())

    @property
    def cpu_used(self) -> float:
        return sum(m.cpu_used for m in self.machines.values())

    @property
    def memory_used(self) -> int:
        return sum(m.memory_used for m in self.machines.values())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "out": []}
