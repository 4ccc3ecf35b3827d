"""The seams of placement and of disruption, and what their policies see.

A placement is two lists of rules, the form that Protean (OSDI 2020) gave it: validators, which a machine must pass, and
preferences in strict order, of which a later one only breaks the ties of those before it. A disruption policy says
which of the operations that an application is to suffer it can bear now: Twine's TaskControl (OSDI 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import ClassVar

import msgspec

from nubes.kernel.policy import Policy, decision, seam


class Request(msgspec.Struct, frozen=True):
    """What is to be placed. Requests that are equal are placed alike on the same machines."""

    kind: str  # what is alike: the name of a function, the type of a VM
    cpu: float = 0.0
    memory_bytes: int = 0
    gpu: float = 0.0
    group: str = ""  # what is to be spread for availability: replicas of one service; "": nothing
    near: tuple[tuple[int, int], ...] = ()  # (machine, bytes of its inputs that lie there)


class MachineView:
    """A machine as policies see it. Sizes are bytes; what is used is what was promised, not what was measured."""

    __slots__ = (
        "changes", "cpu", "cpu_used", "draining", "gpu", "gpu_used", "groups", "holds", "id", "memory_bytes",
        "memory_used", "zone",
    )  # fmt: skip

    def __init__(self, id: int, cpu: float, memory_bytes: float, gpu: float = 0.0, zone: str = "") -> None:
        self.id = id
        self.cpu, self.memory_bytes, self.gpu = cpu, memory_bytes, gpu
        self.zone = zone  # what fails together: a rack, an availability zone
        self.cpu_used, self.memory_used, self.gpu_used = 0.0, 0, 0.0
        self.holds: dict[str, int] = {}  # kind -> how many of it are here
        self.groups: dict[str, int] = {}  # the same by group
        self.draining = False  # takes nothing new: it is to go
        self.changes = 0  # counts the changes of `holds` and `groups`

    def room(self, request: Request) -> bool:
        """Whether what is free is enough for `request`."""
        return (
            self.cpu_used + request.cpu <= self.cpu
            and self.memory_used + request.memory_bytes <= self.memory_bytes
            and self.gpu_used + request.gpu <= self.gpu
        )

    def count(self, request: Request, more: int) -> None:
        """Notes that `more` of what `request` stands for are here (fewer, if negative)."""
        self.changes += 1
        for table, key in ((self.holds, request.kind), (self.groups, request.group)):
            if key:
                table[key] = table.get(key, 0) + more
                if not table[key]:
                    del table[key]

    def take(self, request: Request, more: int) -> None:
        """The same, and promises (or gives back) what they ask for."""
        self.cpu_used += more * request.cpu
        self.memory_used += more * request.memory_bytes
        self.gpu_used += more * request.gpu
        self.count(request, more)

    def freeze(self) -> MachineView:
        copy = MachineView.__new__(MachineView)
        for slot in MachineView.__slots__:
            value = getattr(self, slot)
            setattr(copy, slot, dict(value) if isinstance(value, dict) else value)
        return copy


class Validator(msgspec.Struct, frozen=True):
    """A machine must pass it. `reads` are the fields of a request it depends on: equal ones give equal answers."""

    name: str
    reads: tuple[str, ...]
    holds: Callable[[Request, MachineView], bool]


class Preference(msgspec.Struct, frozen=True):
    """The less the better. Scores are few and far apart (quantised), so that later preferences have a say."""

    name: str
    reads: tuple[str, ...]
    score: Callable[[Request, MachineView], float]


@seam("placement", default="balanced")
class Placement(Policy):
    """Which machine something goes to. A policy names its rules, or decides by itself in `choose`."""

    validators: tuple[Validator, ...] = ()
    preferences: tuple[Preference, ...] = ()

    @decision
    def choose(self, request: Request, machines: Sequence[MachineView], now: float) -> MachineView | None:
        """One of `machines`, all of which can have room for `request` and are not draining; None: none will do."""
        validators, preferences = self.validators, self.preferences
        passing = [m for m in machines if all(rule.holds(request, m) for rule in validators)]
        return min(passing, key=lambda m: (*(p.score(request, m) for p in preferences), m.id), default=None)

    def scores(
        self, question: str, request: Request, machines: Sequence[MachineView], now: float
    ) -> list[tuple[str, float]]:
        """What `nubes why` shows of those that lost: each machine by its first preference."""
        if not self.preferences:
            return []
        return [(f"machine {m.id}", self.preferences[0].score(request, m)) for m in machines]


class Operation(msgspec.Struct, frozen=True):
    """Something that takes a task down for a while, or moves it."""

    id: int
    kind: str  # update | restart | move | preempt | maintenance
    task: str
    deadline_s: float = inf  # when it is done whatever the application says


class TaskView(msgspec.Struct, frozen=True):
    """A task of an application: a replica, an instance."""

    name: str
    healthy: bool = True
    leader: bool = False
    shards: frozenset[str] = frozenset()  # what it holds a replica of


@seam("disruption", default="at-once")
class Disruption(Policy):
    """Which operations on its tasks an application can bear now."""

    method: str = ""  # of the application's class, which is asked in place of `allow`
    shards: ClassVar[bool] = False  # whether it goes by the shards that tasks hold

    @decision
    def allow(
        self, pending: Sequence[Operation], running: Sequence[Operation], tasks: Sequence[TaskView], now: float
    ) -> list[int]:
        """The ids of those among `pending` that may begin now, beside those that run. What is left is offered again."""
        return [operation.id for operation in pending]
