"""Virtual time: runs the very controller that runs live, over a heap of events instead of processes."""

from __future__ import annotations

import gc
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import inf, nan
from time import perf_counter
from typing import Any

import msgspec
import numpy as np

from nubes.functions import events as e
from nubes.functions.controller import Functions
from nubes.functions.models import Machine
from nubes.workloads.outcome import ANSWERED, FAILED, UNANSWERED, Lives, Outcome
from nubes.workloads.workload import Workload

CHUNK = 65_536  # calls turned from columns into Python numbers at a time
PATIENCE_S = 2 * 86_400.0  # how long after the workload's end calls may still be answered
UNLIMITED_BYTES = 2**62  # stands for no limit where a whole number is asked for

Timed = tuple[float, Any]


def simulate(
    workload: Workload,
    controller: Functions,
    *,
    controls: Sequence[Timed] | None = None,
    record: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Outcome:
    """Runs `workload` through `controller` and says what became of each call.

    Deploys every function at time 0, or else feeds `controls`, (time, event) in order of time, as they come.
    Schedules are left out: the calls they made are part of the workload. Where a call arrives at the very time of
    another event, the other goes first. With `record` the outcome's log holds every event, and begins with those that
    set the controller's policies. `progress` is told the calls submitted so far. The same arguments give the same
    outcome.
    """
    run = _Run(workload)
    if record:
        run.log = _beginning(controller)
    begun = perf_counter()
    collecting = gc.isenabled()
    gc.collect()
    gc.freeze()  # what is alive now stays alive: not looked at again
    gc.disable()  # what the controller drops is not cyclic
    try:
        events = run.through(controller, deployments(workload) if controls is None else controls, progress)
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()
    return run.outcome(events, perf_counter() - begun)


def deployments(workload: Workload) -> list[Timed]:
    """What deploys all functions of a workload at time 0, app by app."""
    apps: dict[str, dict[str, Any]] = {}
    for spec in workload.specs:
        apps.setdefault(spec.name.partition("/")[0], {})[spec.name] = spec
    return [(0.0, e.Deployed(app, 1, tuple(specs.values()))) for app, specs in apps.items()]


@dataclass(slots=True)
class _Processes:
    """Columns of `Lives` as they grow."""

    function: array[int]
    start_s: array[float]
    ready_s: array[float]
    stop_s: array[float]
    memory_bytes: array[float]

    def add(self, function: int, start_s: float, ready_s: float, memory_bytes: float) -> int:
        self.function.append(function)
        self.start_s.append(start_s)
        self.ready_s.append(ready_s)
        self.stop_s.append(inf)
        self.memory_bytes.append(memory_bytes)
        return len(self.function) - 1


class _Run:
    def __init__(self, workload: Workload) -> None:
        n = workload.calls
        self.workload = workload
        self.log: list[Timed] | None = None
        self.started_s = np.full(n, nan)
        self.ended_s = np.full(n, nan)
        self.how = np.zeros(n, np.int8)
        self.instance = np.full(n, -1, np.int32)
        self.end = np.full(n, UNANSWERED, np.int8)
        self.processes = _Processes(array("i"), array("d"), array("d"), array("d"), array("d"))
        self.machine = Machine(workload.specs, [samples.tolist() for samples in workload.start_s], workload.tree)
        self.index = {name: index for index, name in enumerate(workload.pools)}
        self.rows: dict[int, int] = {}  # instance -> row of its process
        self.nodes: dict[int, int] = {}  # parent -> row of its process
        self.calls: dict[int, np.ndarray[Any, Any]] = {}  # function -> its calls, once one of them was copied

    def through(self, controller: Functions, controls: Sequence[Timed], progress: Callable[[int], None] | None) -> int:
        """The loop. Local names and one level of code: this is what a replay spends its time in."""
        workload, log, rows = self.workload, self.log, self.rows
        handle, process = controller.handle, self._process
        submitted, finished, timer_fired, restarted = e.Submitted, e.Finished, e.TimerFired, e.Restarted
        dispatch, resolve, set_timer, succeeded = e.Dispatch, e.Resolve, e.SetTimer, e.SUCCEEDED
        exec_s = _numbers(np.ascontiguousarray(workload.exec_s))
        held_s = exec_s if workload.overhead_s is None else _numbers(workload.exec_s + workload.overhead_s)
        fails = None if workload.fails is None else _numbers(workload.fails.copy())
        started, ended, how = _numbers(self.started_s), _numbers(self.ended_s), _numbers(self.how)
        instance, end = _numbers(self.instance), _numbers(self.end)
        names = [spec.name for spec in workload.specs]
        variants = workload.variants
        heap: list[tuple[float, int, Any]] = [(inf, 0, None)]
        for sequence, (at, event) in enumerate(controls, 1):
            heap.append((at, sequence, _unscheduled(event)))
        heapify(heap)
        sequence = len(controls)
        calls, seconds, last = workload.calls, workload.seconds, workload.seconds + PATIENCE_S
        answered = submissions = events = 0
        copied: set[int] = set()  # calls that were sent to a second instance
        arrivals: list[float] = []
        functions: list[int] = []
        position, size = 0, 0
        arrival = 0.0
        while True:
            if position == size:  # the next chunk of arrivals
                if progress is not None:
                    progress(submissions)
                arrivals = workload.arrival_s[submissions : submissions + CHUNK].tolist()
                functions = workload.function[submissions : submissions + CHUNK].tolist()
                position, size = 0, len(arrivals)
                if not size:
                    arrivals, size = [inf], -1
                arrival = arrivals[0]
            if heap[0][0] <= arrival:
                now, _, event = heappop(heap)
                if (now > seconds and answered >= submissions >= calls) or now > last:
                    break
                if type(event) is restarted:
                    self._restart(now)
                    heap = [entry for entry in heap if entry[1] <= len(controls)]
                    heapify(heap)
                    answered = submissions  # whoever waits gets no answer any more
            else:
                now = arrival
                function = functions[position]
                if variants:
                    event = submitted(submissions, names[function], False, "", variants[function])
                else:
                    event = submitted(submissions, names[function])
                submissions += 1
                position += 1
                if position < size:
                    arrival = arrivals[position]
            events += 1
            if log is not None:
                log.append((now, event))
            for command in handle(event, now):
                kind = type(command)
                if kind is dispatch:
                    batch = command.calls
                    if len(batch) == 1:
                        call = batch[0]
                        if command.copy:
                            copied.add(call)
                            again = self._another(call)
                            sequence += 1
                            done = finished(call, command.instance, True, exec_s[again])
                            heappush(heap, (now + held_s[again], sequence, done))
                            continue
                        took, until = exec_s[call], now + held_s[call]
                        ok = True
                        if fails is not None and fails[call] > 0:
                            fails[call] -= 1
                            ok = False
                        started[call] = now
                        ended[call] = until
                        how[call] = command.how
                        instance[call] = rows[command.instance]
                        sequence += 1
                        heappush(heap, (until, sequence, finished(call, command.instance, ok, took)))
                        continue
                    begins = now
                    took = max(exec_s[call] for call in batch)
                    until = now + max(held_s[call] for call in batch)
                    for call in batch:
                        if not command.batch:  # one after the other
                            took, until = exec_s[call], begins + held_s[call]
                        started[call] = begins
                        ended[call] = until
                        how[call] = command.how
                        instance[call] = rows[command.instance]
                        sequence += 1
                        heappush(heap, (until, sequence, finished(call, command.instance, True, took)))
                        if not command.batch:
                            begins = until
                elif kind is resolve:
                    answered += 1
                    call = command.call
                    if command.status == succeeded:
                        end[call] = ANSWERED
                        if copied and call in copied:
                            ended[call] = now
                    else:
                        end[call] = FAILED
                        ended[call] = now
                elif kind is set_timer:
                    sequence += 1
                    heappush(heap, (command.at, sequence, timer_fired(command.key)))
                else:
                    for at, consequence in process(command, now):
                        sequence += 1
                        heappush(heap, (at, sequence, consequence))
        return events

    def _process(self, command: Any, now: float) -> list[Timed]:
        """Commands about processes: rare, so in plain code. Returns what will happen because of them."""
        if isinstance(command, e.StartInstance):
            function = self.index[command.function]
            ready = now + self.machine.start_s(function, command.node)
            memory_bytes = self.workload.specs[function].memory_bytes
            self.rows[command.instance] = self.processes.add(function, now, ready, memory_bytes)
            return [(ready, e.InstanceReady(command.instance))]
        if isinstance(command, e.StopInstance):
            row = self.rows.pop(command.instance, None)
            if row is not None:
                self.processes.stop_s[row] = now
            return []
        if isinstance(command, e.GrowNode):
            ready, took, held = self.machine.grow(command, now)
            self.nodes[command.node] = self.processes.add(-1, now, ready, held)
            return [(ready, e.NodeReady(command.node, took, held))]
        if isinstance(command, e.PruneNode):
            self.machine.prune(command.node)
            self.processes.stop_s[self.nodes.pop(command.node)] = now
            return []
        if isinstance(command, e.AskDisruption):  # an application that was recorded is not here to be asked
            everything = tuple(one.id for one in command.pending)
            return [(now, e.DisruptionAnswered(command.function + command.variant, command.offer, everything))]
        if isinstance(command, e.Interrupt):
            return [(now, e.Finished(command.call, command.instance, False, 0.0))]
        raise TypeError(f"The simulator does not know the command {command!r}.")

    def _another(self, call: int) -> int:
        """The call whose times a copy of `call` takes: the next of the same function, or the first if it is the last.

        What made a call slow is not known. Here it is taken to lie with the run, not with what was asked for.
        """
        function = int(self.workload.function[call])
        calls = self.calls.get(function)
        if calls is None:
            calls = self.calls[function] = np.flatnonzero(self.workload.function == function)
        return int(calls[(np.searchsorted(calls, call) + 1) % len(calls)])

    def _restart(self, now: float) -> None:
        """The control plane comes back: every process is gone, and so is everything that was about to happen."""
        for row in (*self.rows.values(), *self.nodes.values()):
            self.processes.stop_s[row] = now
        self.rows.clear()
        self.nodes.clear()
        self.machine.nodes.clear()

    def outcome(self, events: int, wall_s: float) -> Outcome:
        p = self.processes
        start_s, ready_s, stop_s, held = (
            np.array(c, np.float64) for c in (p.start_s, p.ready_s, p.stop_s, p.memory_bytes)
        )
        lives = Lives(np.array(p.function, np.int32), start_s, ready_s, stop_s, held)
        log = self.log or []
        return Outcome(self.started_s, self.ended_s, self.how, self.instance, self.end, lives, events, wall_s, log)


def _beginning(controller: Functions) -> list[Timed]:
    """The events that make a new controller like this one, which has not run yet."""
    machines = [
        e.MachineReady(m.cpu, int(min(m.memory_bytes, UNLIMITED_BYTES)), m.id, m.zone)
        for m in controller.machines.values()
    ]
    policies = [e.PolicySet(seam, policy.text) for seam, policy in controller.policies.items()]
    return [(0.0, event) for event in (*machines, *policies)]


def _numbers(column: Any) -> Any:
    """A view of a column that gives and takes plain numbers, several times faster than the array itself."""
    return memoryview(column)


def _unscheduled(event: Any) -> Any:
    if isinstance(event, e.Deployed) and any(spec.schedule for spec in event.functions):
        specs = tuple(msgspec.structs.replace(spec, schedule=None) for spec in event.functions)
        return msgspec.structs.replace(event, functions=specs)
    return event
