"""The seam of task placement, and what its policies see of nodes and tasks."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from nubes.kernel.policy import Policy, decision, seam

LOCAL, GLOBAL = "local", "global"
SMOOTHING = 0.1  # weight of the newest sample in exponential averages
BANDWIDTH = 125e6  # bytes/s until something was measured: 1 Gbit/s


class NodeView:
    """A node as its heartbeats and the object table tell of it."""

    __slots__ = ("backlog", "bandwidth", "blocked", "cpus", "free", "has", "id", "queued", "task_s")

    def __init__(self, id: int, has: Mapping[str, float], cpus: int) -> None:
        self.id = id
        self.has = dict(has)
        self.cpus = cpus
        self.backlog = 0  # tasks it has, as only its own scheduler knows at any time
        self.blocked = 0  # of these, those that wait for objects and need no CPU meanwhile
        self.queued = 0  # the same as everybody knows it: by its last heartbeat, and what was sent there since
        self.free = cpus
        self.task_s = 0.0  # smoothed time of a task
        self.bandwidth = BANDWIDTH  # smoothed, of what it copies from others, bytes/s

    @property
    def load(self) -> int:
        """Tasks that run there, or would at once."""
        return self.backlog - self.blocked

    def fits(self, request: TaskRequest) -> bool:
        return all(self.has.get(what, 0.0) >= amount for what, amount in request.needs)

    def freeze(self) -> NodeView:
        copy = NodeView(self.id, self.has, self.cpus)
        for slot in ("backlog", "blocked", "queued", "free", "task_s", "bandwidth"):
            setattr(copy, slot, getattr(self, slot))
        return copy


class TaskRequest(msgspec.Struct, frozen=True):
    """A task whose inputs are all somewhere."""

    kind: str
    origin: int  # the node it was submitted on
    needs: tuple[tuple[str, float], ...] = ()
    inputs_bytes: int = 0
    near: dict[int, int] = {}  # node -> bytes of its inputs that are there

    def missing_bytes(self, node: int) -> int:
        return self.inputs_bytes - self.near.get(node, 0)


class Choice(msgspec.Struct, frozen=True):
    """The node, and who decided: the local scheduler of the task's origin, or a global one."""

    node: int
    scheduler: str


@seam("task-placement", default="bottom-up")
class TaskPlacement(Policy):
    """Which node a task of a graph runs on, and whether a node decides that by itself."""

    @decision
    def place(self, request: TaskRequest, nodes: Mapping[int, NodeView], now: float) -> Choice | None:
        """One of `nodes` that fits the request; None: none does yet."""
        raise NotImplementedError
