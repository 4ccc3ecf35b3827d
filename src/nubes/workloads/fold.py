"""Folds a log: a controller of its own is fed the events, and its commands tell what the log does not hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, nan
from typing import Any

from nubes.functions import events as e
from nubes.functions.controller import Functions
from nubes.functions.models import NodeKind, TreeTimes
from nubes.functions.spec import FunctionSpec
from nubes.kernel.errors import UsageError
from nubes.workloads.outcome import ANSWERED, FAILED, Lives, Outcome
from nubes.workloads.workload import Workload

UNKNOWN_START_S = 0.1  # of a function that was never started while any other was not either
CONTROLS = (e.Deployed, e.Removed, e.PolicySet, e.MachineReady, e.Restarted)

Timed = tuple[float, Any]


@dataclass(slots=True)
class _Call:
    pool: str
    arrived_s: float
    started_s: float
    instance: int
    how: int
    exec_s: float = nan
    ended_s: float = nan
    after: bool = False  # handed over together with calls that run before it
    fails: int = 0
    end: int = -1  # unknown
    copies: tuple[int, ...] = ()  # instances that run it too


@dataclass(slots=True)
class _Process:
    pool: str  # "": a parent in the tree
    start_s: float
    memory_bytes: int
    shares: int = 0  # what it was forked from: 0 nothing, 1 a parent, 2 a parent with the function's module
    parent: int = 0  # of a parent: the one it grew from
    ready_s: float = inf
    answered_s: float = 0.0  # when it last gave an answer
    stop_s: float = inf


@dataclass(slots=True)
class Fold:
    """Takes (time, event) pairs one by one, and gives what they come to in columns."""

    controller: Functions = field(default_factory=Functions)
    begun_s: float = nan
    now: float = 0.0
    controls: list[Timed] = field(default_factory=list)
    specs: dict[str, FunctionSpec] = field(default_factory=dict)  # by pool
    variants: dict[str, str] = field(default_factory=dict)
    open: dict[int, _Call] = field(default_factory=dict)
    calls: list[_Call] = field(default_factory=list)
    instances: dict[int, _Process] = field(default_factory=dict)
    nodes: dict[int, _Process] = field(default_factory=dict)
    kinds: dict[int, NodeKind] = field(default_factory=dict)
    grown: dict[NodeKind, list[tuple[float, int]]] = field(default_factory=dict)
    seen: int = 0

    def step(self, now: float, event: Any) -> None:
        if self.begun_s != self.begun_s:
            self.begun_s = now
        self._happened(event, now)
        self.now = now
        for command in self.controller.handle(event, now):
            self._commanded(command, now)

    def _happened(self, event: Any, now: float) -> None:
        at = now - self.begun_s
        if isinstance(event, e.Submitted):
            self.seen += 1
        elif isinstance(event, e.Finished):
            call = self.open.get(event.call)
            if call is not None and event.instance in (call.instance, *call.copies):
                call.instance = event.instance
                by = self.instances[event.instance]
                if call.after:  # it had another call to answer first
                    call.started_s = max(call.started_s, by.answered_s)
                call.exec_s, call.ended_s, by.answered_s = event.exec_s, now, now
                call.end = ANSWERED if event.ok else FAILED
                call.fails += not event.ok
        elif isinstance(event, e.InstanceReady):
            process = self.instances.get(event.instance)
            if process is not None and process.ready_s == inf and process.stop_s == inf:
                process.ready_s = now
        elif isinstance(event, e.InstanceLost):
            self._stopped(self.instances.get(event.instance), now)
        elif isinstance(event, e.NodeReady) and event.node in self.kinds:
            node = self.nodes[event.node]
            node.ready_s, node.memory_bytes = now, event.memory_bytes
            above = self.nodes.get(node.parent)
            took = now - max(node.start_s, above.ready_s if above and above.ready_s < inf else 0.0)
            self.grown.setdefault(self.kinds[event.node], []).append((took, event.memory_bytes))
        elif isinstance(event, e.NodeLost):
            self._stopped(self.nodes.get(event.node), now)
        elif isinstance(event, e.ClientGone):
            self.controls += [(at, e.Removed(app)) for app in event.apps]
        if isinstance(event, CONTROLS):
            self.controls.append((at, event))
            if isinstance(event, e.Restarted):  # the processes ended some time after the last that was heard of them
                for process in (*self.instances.values(), *self.nodes.values()):
                    self._stopped(process, self.now)

    def _commanded(self, command: Any, now: float) -> None:
        if isinstance(command, e.Dispatch):
            for id in command.calls:
                self._dispatched(id, command, now)
        elif isinstance(command, e.Resolve):
            call = self.open.pop(command.call, None)
            if call is not None:
                self._resolved(call, command, now)
        elif isinstance(command, e.StartInstance):
            f = self.controller.functions[command.function]
            self.specs[f.name], self.variants[f.name] = f.spec, f.variant
            node = self.controller.tree.where.get(command.node)
            shares = 0 if node is None else 2 if node.function == f.spec.name else 1
            self.instances[command.instance] = _Process(f.name, now, f.spec.memory_bytes, shares)
        elif isinstance(command, e.StopInstance):
            self._stopped(self.instances.get(command.instance), now)
        elif isinstance(command, e.GrowNode):
            self.kinds[command.node] = (command.environment, command.imports, command.function)
            self.nodes[command.node] = _Process("", now, 0, parent=command.parent)
        elif isinstance(command, e.PruneNode):
            self._stopped(self.nodes.get(command.node), now)

    def _dispatched(self, id: int, command: e.Dispatch, now: float) -> None:
        """A call got an instance. A step of a route is a call of its own, one that is tried again is not."""
        c = self.controller.calls[id]
        call = self.open.get(id)
        if command.copy and call is not None:
            call.copies += (command.instance,)
            return
        if call is None or (call.pool, call.arrived_s) != (c.function.name, c.arrived_s):
            call = self.open[id] = _Call(c.function.name, c.arrived_s, now, command.instance, command.how)
            self.calls.append(call)
        call.started_s, call.instance, call.how, call.end = now, command.instance, command.how, -1
        call.after = len(command.calls) > 1 and not command.batch

    def _resolved(self, call: _Call, command: e.Resolve, now: float) -> None:
        if call.end != -1:
            return
        if command.status == e.TIMED_OUT:  # longer than its timeout, whatever that was
            call.exec_s, call.ended_s, call.end = now - call.started_s + 1.0, now, FAILED
        elif command.status == e.FAILED:  # its instance was lost
            call.exec_s, call.ended_s, call.end = now - call.started_s, now, FAILED
            call.fails += 1

    def _stopped(self, process: _Process | None, now: float) -> None:
        if process is not None and process.stop_s == inf:
            process.stop_s = now

    # -- columns -------------------------------------------------------------------------------------------------

    def recorded(self, name: str) -> tuple[Workload, Outcome, list[Timed], dict[str, str], int]:
        """The workload, what was measured of it, the controls, the policies that were live, the calls left out."""
        import numpy as np

        calls = sorted((call for call in self.calls if call.end != -1), key=lambda call: call.arrived_s)
        if not calls:
            raise UsageError(f"No call in {name!r} was answered.", "Call something first; then replay it.")
        t0 = self.begun_s
        pools = {pool: index for index, pool in enumerate(self.specs)}
        columns = np.array([(c.arrived_s - t0, c.exec_s, c.started_s - t0, c.ended_s - t0) for c in calls])
        arrival_s, exec_s, started_s, ended_s = np.ascontiguousarray(columns.T)
        end = np.array([c.end for c in calls], np.int8)
        processes = list(self.instances.items())
        rows = {id: row for row, (id, _) in enumerate(processes)}
        whole_s, tree = self._starts(list(pools))
        specs = tuple(self.specs.values())
        left_out = max(0, self.seen - len(calls))
        source = f"Recorded live: {len(specs)} functions, {len(calls)} calls with their own run and start times"
        workload = Workload(
            name,
            source + (f"; {left_out} calls without an answer are left out." if left_out else "."),
            specs,
            arrival_s,
            np.array([pools[c.pool] for c in calls], np.int32),
            exec_s,
            tuple(np.array(samples) for samples in whole_s),
            self.now - t0,
            tuple(self.variants[pool] for pool in pools) if any(self.variants.values()) else (),
            np.where(end == ANSWERED, np.maximum(ended_s - started_s - exec_s, 0.0), 0.0),
            np.array([c.fails for c in calls], np.int16),
            tree,
        )
        lives = [process for _, process in processes] + list(self.nodes.values())
        measured = Outcome(
            started_s,
            ended_s,
            np.array([c.how for c in calls], np.int8),
            np.array([rows[c.instance] for c in calls], np.int32),
            end,
            Lives(
                np.array([pools[p.pool] if p.pool else -1 for p in lives], np.int32),
                np.array([p.start_s - t0 for p in lives]),
                np.array([p.ready_s - t0 for p in lives]),
                np.array([p.stop_s - t0 for p in lives]),
                np.array([float(p.memory_bytes) for p in lives]),
            ),
        )
        policies = {seam: policy.text for seam, policy in self.controller.policies.items()}
        return workload, measured, self.controls, policies, left_out

    def _starts(self, pools: list[str]) -> tuple[list[list[float]], TreeTimes]:
        """Start times by pool and by what they shared; whole ones that never happened are put together from parts."""
        took: dict[str, tuple[list[float], list[float], list[float]]] = {pool: ([], [], []) for pool in pools}
        for p in self.instances.values():
            if p.ready_s < inf:
                took[p.pool][p.shares].append(p.ready_s - p.start_s)
        bare = [s for (_, _, function), samples in self.grown.items() if not function for s, _ in samples]
        root_s = _median(bare) if bare else 0.0
        whole: list[list[float]] = []
        for pool in pools:
            fresh, shared, own = took[pool]
            name = self.specs[pool].name
            module = [s for (_, _, function), samples in self.grown.items() if function == name for s, _ in samples]
            rest = [s + root_s for s in shared] or [s + root_s + (_median(module) if module else 0.0) for s in own]
            whole.append(fresh or rest)
        known = [s for samples in whole for s in samples]
        usual = _median(known) if known else UNKNOWN_START_S
        tree = TreeTimes(
            tuple(tuple(took[pool][1]) for pool in pools),
            tuple(tuple(took[pool][2]) for pool in pools),
            {kind: tuple(samples) for kind, samples in self.grown.items()},
        )
        return [samples or [usual] for samples in whole], tree


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
