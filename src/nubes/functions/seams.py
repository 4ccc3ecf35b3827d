"""The seams of functions and the views their policies see.

Views are read-only for policies. They stay the same object between calls: a policy that remembers something copies it.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, inf
from typing import ClassVar

import msgspec

from nubes.functions.spec import FunctionSpec
from nubes.kernel.policy import Policy, decision, seam


class FunctionView:
    """A function, or one parameterisation of a class, as policies see it. Times are seconds, sizes bytes."""

    __slots__ = (
        "arrivals", "busy", "cold_start_s", "exec_s", "idle", "last_arrival_s", "last_end_s",
        "name", "queued", "spec", "starting",
    )  # fmt: skip

    def __init__(self, name: str, spec: FunctionSpec) -> None:
        self.name = name
        self.spec = spec
        self.arrivals = 0  # calls so far
        self.last_arrival_s = -inf
        self.last_end_s = -inf
        self.busy = 0  # instances with at least one call
        self.idle = 0  # ready instances with none
        self.starting = 0
        self.queued = 0  # calls without an instance
        self.cold_start_s = 0.0  # moving averages of provisioning and execution; 0 until the first is known
        self.exec_s = 0.0

    def freeze(self) -> FunctionView:
        copy = FunctionView.__new__(FunctionView)
        for slot in FunctionView.__slots__:
            setattr(copy, slot, getattr(self, slot))
        return copy


class InstanceView:
    """A process that has, or is getting, a function loaded."""

    __slots__ = ("function", "id", "last_used_s", "load", "ready_s", "started_s", "uses")

    def __init__(self, id: int, function: FunctionView, now: float) -> None:
        self.id = id
        self.function = function
        self.started_s = now
        self.ready_s = inf  # until it is
        self.last_used_s = now
        self.uses = 0  # calls dispatched to it so far
        self.load = 0  # calls it runs now

    def freeze(self) -> InstanceView:
        copy = InstanceView.__new__(InstanceView)
        for slot in InstanceView.__slots__:
            setattr(copy, slot, getattr(self, slot))
        copy.function = self.function.freeze()
        return copy


class CallView:
    """A call that waits."""

    __slots__ = ("arrived_s", "attempt", "id")

    def __init__(self, id: int, now: float) -> None:
        self.id = id
        self.arrived_s = now
        self.attempt = 1

    def freeze(self) -> CallView:
        copy = CallView(self.id, self.arrived_s)
        copy.attempt = self.attempt
        return copy


class NodeView:
    """A parent in the process tree, parked after its imports."""

    __slots__ = (
        "children",
        "environment",
        "forks",
        "function",
        "grow_s",
        "id",
        "imports",
        "last_used_s",
        "machine",
        "memory_bytes",
        "parent",
        "ready",
    )

    def __init__(
        self, id: int, parent: int, environment: str, imports: frozenset[str], function: str, now: float,
        machine: int = 0,
    ) -> None:  # fmt: skip
        self.id = id
        self.machine = machine
        self.parent = parent
        self.environment = environment
        self.imports = imports  # everything loaded in it, its parent's included
        self.function = function  # the function whose module is loaded too; "": none
        self.ready = False
        self.children = 0
        self.forks = 0  # instances started from it
        self.last_used_s = now
        self.grow_s = 0.0  # what growing it took: what a fork from it saves
        self.memory_bytes = 0  # private to it

    def freeze(self) -> NodeView:
        copy = NodeView.__new__(NodeView)
        for slot in NodeView.__slots__:
            setattr(copy, slot, getattr(self, slot))
        return copy


class Window(msgspec.Struct, frozen=True):
    """How long to stay unloaded after an execution (0: stay loaded), then how long to stay loaded."""

    prewarm_s: float
    keep_s: float


FOREVER = Window(0.0, inf)


@seam("keep-alive", default="cidre(foresee=true)")
class KeepAlive(Policy):
    """When to start instances, how long to keep them, and which to give up when memory is short."""

    binds: ClassVar[bool] = False  # whether a call waits for the instance started for it, even if another falls idle

    @decision
    def window(self, f: FunctionView, now: float) -> Window:
        """An instance of `f` fell idle: its windows."""
        return FOREVER

    @decision
    def start(self, f: FunctionView, now: float) -> int:
        """Calls of `f` wait and none of its instances is free: how many to start. If it has none, one is started."""
        room = f.spec.batching.max_batch_size if f.spec.batching else f.spec.concurrency
        return max(0, ceil(f.queued / room) - f.starting)

    @decision
    def priority(self, instance: InstanceView, now: float) -> float:
        """Worth of an idle instance: when memory is short, the lowest goes first."""
        return instance.last_used_s

    # Observations: override what the policy learns from.

    def arrived(self, f: FunctionView, now: float) -> None:
        """A call of `f` arrived (`f.last_arrival_s` is still that of the call before)."""

    def dispatched(self, instance: InstanceView, how: int, waited_s: float, now: float) -> None:
        """A call got `instance`: `how` is WARM, DELAYED or COLD (`nubes.functions.events`)."""

    def evicted(self, instance: InstanceView, priority: float) -> None:
        """`instance` was given up for memory."""

    def forgotten(self, f: FunctionView) -> None:
        """`f` is gone, or was idle for so long that it is taken for new if it is called again."""


@seam("queueing", default="fifo")
class Queueing(Policy):
    """Which waiting call goes next, and whether a function may run another one now."""

    ordered: ClassVar[bool] = False  # whether `order` is used within a function too, or else order of arrival
    limits: ClassVar[bool] = False  # whether `admit` and `finished` are asked at all
    ahead_s: ClassVar[float] = 0.001  # how much expected work an instance may be handed ahead, one call after the other
    patience_s: float = inf  # how old the first call in line for capacity may be before none that comes after may pass
    tick_s: ClassVar[float] = 0.0  # how often `tick` is called; 0: never

    @decision
    def order(self, f: FunctionView, call: CallView) -> tuple[float, ...]:
        """Sort key over all functions' waiting calls when capacity is short: the smallest goes first."""
        return (call.arrived_s,)

    @decision
    def admit(self, f: FunctionView, now: float) -> float:
        """When `f` may issue its next call: `now` or less: at once; `inf`: not before one of its calls ends, or a tick.

        A batch is asked for once and issued as many times as it has calls.
        """
        return now

    def allowance(self, f: FunctionView, now: float) -> int:
        """`f` may issue a call now: how many instances may be started for those that wait, beside those that start."""
        return f.queued

    def issued(self, f: FunctionView, now: float) -> None:
        """A call of `f` got an instance."""

    def finished(self, f: FunctionView, ok: bool, exec_s: float, backpressure: str, now: float) -> None:
        """A call of `f` that was issued ended, well or not, by itself or with its instance.

        `backpressure` names the callee that pushed back, if one did. After a switch of policies calls end that the new
        policy has not seen issued.
        """

    def tick(self, utilisation: float, now: float) -> None:
        """`tick_s` seconds passed; `utilisation` is the share of the machine's CPU in use."""


class Grow(msgspec.Struct, frozen=True):
    """A parent to make: what it imports beyond its own parent, and the function whose module it loads, if any."""

    imports: tuple[str, ...] = ()
    function: str = ""


class Plan(msgspec.Struct, frozen=True):
    """Where an instance is forked from.

    `source`: a ready node, or 0 for a fresh interpreter. `grow`: parents to make below it, each under the one before.
    `wait`: fork from the last of these once it is there; otherwise fork from `source` now and let them grow for later.
    """

    source: int
    grow: tuple[Grow, ...] = ()
    wait: bool = True


@seam("cold-start", default="seuss")
class ColdStart(Policy):
    """The process tree: which parents to keep, and which one an instance is forked from."""

    eager: ClassVar[bool] = True  # whether parents are grown when a function is deployed, before its first call
    prime: ClassVar[bool] = False  # whether parents exercise the start path before they are parked

    @decision
    def plan(self, f: FunctionView, nodes: Mapping[int, NodeView], now: float) -> Plan:
        """Where to start an instance of `f`; `nodes` are those of its environment on its machine."""
        raise NotImplementedError

    @decision
    def worth(self, node: NodeView, now: float) -> float:
        """Worth of a parent without children: when the tree is over its budget the lowest goes first, `inf` never."""
        return node.last_used_s
