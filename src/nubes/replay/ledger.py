"""The cold-start ledger: every start of a recorded run, split into its parts.

A call that waits for a new instance spends its time, one part after the other, in queue (until an instance is asked
for), parent (until the parent it is forked from has grown), fork, environment, import, setup (the user's enter hooks),
and first answer (from then, by the instance's own clock, until the result is back).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import inf, nan
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from nubes.functions import events as e
from nubes.functions.controller import Functions
from nubes.functions.spec import FunctionSpec

PARTS = ("queue", "parent", "fork", "environment", "import", "setup", "first answer")
START_PARTS = PARTS[:-1]  # what would be gone if the instance had been there
_PHASES = 4  # fork, environment, import, setup: measured in the instance

Timed = tuple[float, Any]


class Start(msgspec.Struct):
    """One start. Times in seconds, instants on the log's clock; unknown ones are nan."""

    function: str
    source: str  # what it was forked from: interpreter (nothing), parent, or function (a parent with its module)
    created_s: float
    begun_s: float = nan  # when the parent was there
    phases: tuple[float, ...] = ()
    ready_s: float = nan
    call: int = 0  # the call that waited for it; 0 if it was started ahead of any
    arrived_s: float = nan
    answered_s: float = nan
    alone: bool = False  # no other instance of its function was there when the call arrived
    gap_s: float = inf  # from the last stop of one, for want of calls, until the call arrived
    last_busy_s: float = nan
    stopped_s: float = inf

    @property
    def complete(self) -> bool:
        """Whether a call waited for it and was answered."""
        return bool(self.call) and len(self.phases) == _PHASES and self.answered_s == self.answered_s

    @property
    def wall_s(self) -> float:
        return self.answered_s - self.arrived_s

    def parts(self) -> dict[str, float]:
        """The call's time, part by part. What happened before it arrived is not its time."""
        marks = [self.created_s, self.begun_s]
        for phase in self.phases:
            marks.append(marks[-1] + phase)
        seen = [max(mark, self.arrived_s) for mark in marks]
        lengths = [seen[0] - self.arrived_s]
        lengths += [after - before for before, after in pairwise(seen)]
        lengths.append(self.answered_s - seen[-1])
        return dict(zip(PARTS, lengths, strict=True))

    @property
    def waited_s(self) -> float:
        """What the call would not have waited, had the instance been there."""
        parts = self.parts()
        return sum(parts[part] for part in START_PARTS)


class FunctionLedger(msgspec.Struct):
    """One function's starts. `parts` are sums of seconds over its cold calls.

    `utility` is the median over its instances of (lifetime - final idle time) / start time: below 1, starting took
    longer than the work it was for (Huawei, EuroSys 2025).
    """

    function: str
    calls: int
    cold: int
    ahead: int
    sources: dict[str, int]
    parts: dict[str, float]
    wall_s: float
    utility: float | None


class Ledger(msgspec.Struct):
    """`seconds` is the length of the recording; `policies` what decided at its end."""

    seconds: float
    functions: list[FunctionLedger]
    starts: list[Start]
    specs: dict[str, FunctionSpec]
    policies: dict[str, str]
    idle_ends_s: dict[str, list[float]]  # by function: how long after each stop for want of calls the next call came


def ledger(log: Path | Sequence[Timed]) -> Ledger:
    """The ledger of a data folder's log, or of (time, event) pairs."""
    if isinstance(log, Path):
        from nubes.workloads.recording import events_of

        log = events_of(log)
    fold = _Fold()
    for now, event in log:
        fold.step(now, event)
    return fold.ledger()


class _Fold:
    """Folds the log again: commands follow from events."""

    def __init__(self) -> None:
        self.controller = Functions()
        self.begun_s = self.now = nan
        self.starts: dict[int, Start] = {}
        self.newest = 0  # the id of the last instance seen
        self.first: dict[tuple[int, int], Start] = {}  # (instance, call) whose answer a start waits for
        self.specs: dict[str, FunctionSpec] = {}
        self.calls: dict[str, int] = {}
        self.ended_idle: dict[str, float] = {}  # function -> when its last instance went for want of calls
        self.idle_ends_s: dict[str, list[float]] = {}

    def step(self, now: float, event: Any) -> None:
        self.begun_s = now if self.begun_s != self.begun_s else self.begun_s
        self.now = now
        controller = self.controller
        if isinstance(event, e.Submitted):
            self._arrived(event, now)
        elif isinstance(event, e.Finished):
            instance = controller.instances.get(event.instance)
            if instance is not None and event.call in instance.calls:
                start = self.first.pop((event.instance, event.call), None)
                if start is not None:
                    start.answered_s = now
                self.starts[event.instance].last_busy_s = now
        elif isinstance(event, e.InstanceReady) and event.instance in self.starts:
            start = self.starts[event.instance]
            start.phases, start.ready_s = tuple(event.phases[-_PHASES:]), now
        elif isinstance(event, e.InstanceLost):
            self._stopped(event.instance, "", now)
        elif isinstance(event, e.Restarted):
            for id in self.starts:
                self._stopped(id, "", now)
        commands = controller.handle(event, now)
        self._created()
        for command in commands:
            self._commanded(command, now)

    def _arrived(self, event: e.Submitted, now: float) -> None:
        if event.function in self.controller.specs:
            self.calls[event.function] = self.calls.get(event.function, 0) + 1
            ended = self.ended_idle.get(event.function)
            if ended is not None and not self._pool(event.function):
                self.idle_ends_s.setdefault(event.function, []).append(now - ended)

    def _pool(self, function: str) -> bool:
        return any(f.instances for f in self.controller.functions.values() if f.spec.name == function)

    def _created(self) -> None:
        """Instances that were asked for in this step: their ids go up, so they are the last ones."""
        for id, instance in reversed(self.controller.instances.items()):
            if id <= self.newest:
                break
            spec = instance.function.spec
            self.specs[spec.name] = spec
            self.starts[id] = Start(spec.name, "", instance.started_s)
        self.newest = max(self.newest, next(reversed(self.controller.instances), 0))

    def _commanded(self, command: Any, now: float) -> None:
        if isinstance(command, e.StartInstance):
            start = self.starts.get(command.instance)
            if start is not None:
                node = self.controller.tree.where.get(command.node)
                start.begun_s = now
                start.source = (
                    "interpreter" if node is None else "function" if node.function == start.function else "parent"
                )
        elif isinstance(command, e.Dispatch):
            self._dispatched(command)
        elif isinstance(command, e.StopInstance):
            self._stopped(command.instance, command.reason, now)

    def _dispatched(self, command: e.Dispatch) -> None:
        start = self.starts.get(command.instance)
        if start is None or start.call or start.last_busy_s == start.last_busy_s or command.how != e.COLD:
            return
        call = self.controller.calls[command.calls[0]]
        start.call, start.arrived_s = call.id, call.arrived_s
        self.first[command.instance, call.id] = start
        others = (s for s in self.starts.values() if s is not start and s.function == start.function)
        start.alone = not any(s.created_s < call.arrived_s < s.stopped_s for s in others)
        ended = self.ended_idle.get(start.function)
        if start.alone and ended is not None:
            start.gap_s = call.arrived_s - ended

    def _stopped(self, id: int, reason: str, now: float) -> None:
        start = self.starts.get(id)
        if start is None or start.stopped_s < inf:
            return
        start.stopped_s = now
        if reason.startswith(("its keep-alive", "its function is not expected")):
            self.ended_idle[start.function] = now
        else:
            self.ended_idle.pop(start.function, None)

    def ledger(self) -> Ledger:
        controller = self.controller
        policies = {seam: policy.text for seam, policy in controller.policies.items()}
        starts = list(self.starts.values())
        names = sorted({*(start.function for start in starts), *self.calls})
        functions = [self._function(name, [s for s in starts if s.function == name]) for name in names]
        functions.sort(key=lambda f: -(sum(f.parts[p] for p in START_PARTS)))
        return Ledger(self.now - self.begun_s, functions, starts, self.specs, policies, self.idle_ends_s)

    def _function(self, name: str, starts: list[Start]) -> FunctionLedger:
        cold = [s for s in starts if s.complete]
        split = [s.parts() for s in cold]
        sources: dict[str, int] = {}
        for start in starts:
            if start.source:
                sources[start.source] = sources.get(start.source, 0) + 1
        worth = [ratio for s in starts if (ratio := _utility(s, self.now)) is not None]
        return FunctionLedger(
            name, self.calls.get(name, 0), len(cold), sum(1 for s in starts if not s.call), sources,
            {part: sum(one[part] for one in split) for part in PARTS}, sum(s.wall_s for s in cold),
            median(worth) if worth else None,
        )  # fmt: skip


def _utility(start: Start, end_s: float) -> float | None:
    """(lifetime - final idle time) / start time of one instance; None if it never got ready."""
    took = start.ready_s - start.created_s
    if not took > 0.0:
        return None
    until = start.last_busy_s if start.last_busy_s == start.last_busy_s else start.ready_s
    return (min(until, start.stopped_s, end_s) - start.created_s) / took


def totals(functions: Iterable[FunctionLedger]) -> dict[str, float]:
    """Seconds of each part over all functions."""
    sums = dict.fromkeys(PARTS, 0.0)
    for function in functions:
        for part, seconds in function.parts.items():
            sums[part] += seconds
    return sums
