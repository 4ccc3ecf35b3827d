"""Machines as models: processes that start, run calls, answer, fail, hang and die, and parents that are forked.

Between the control plane and a machine there is a connection, and nothing else.
"""

from __future__ import annotations

import pickle
import random
from functools import partial
from typing import TYPE_CHECKING, Any

from nubes.drivers.local import wire
from nubes.functions.spec import FunctionSpec

if TYPE_CHECKING:
    from nubes.drivers.sim.faults.network import Endpoint
    from nubes.drivers.sim.faults.world import World

# control plane -> machine; what a machine tells is a frame of its instance, or one of the kinds below
START, STOP, RUN, INTERRUPT, GROW, PRUNE = range(6)
FRAME, EXITED, PARKED, GONE = range(6, 10)
FAILURE = b"P" + pickle.dumps(("ValueError", "ValueError: no", "a traceback"), 5)


class Process:
    """One instance on a machine."""

    __slots__ = ("calls", "ending", "free_s", "id", "ready", "spec", "stuck")

    def __init__(self, id: int, spec: FunctionSpec) -> None:
        self.id = id
        self.spec = spec
        self.ready = False
        self.ending = False  # told to stop
        self.stuck = False  # a call hangs in it
        self.calls: dict[int, int] = {}  # call -> number of its execution
        self.free_s = 0.0  # when what it was given is done, if it runs one after the other


class Machine:
    """`number` is 0 for the one that the control plane runs on; it goes and comes with it."""

    def __init__(self, world: World, number: int, r: random.Random) -> None:
        self.world = world
        self.number = number
        self.r = r
        self.cpu = r.choice([1.0, 2.0, 8.0])
        self.memory_bytes = r.choice([512, 1024, 8192]) << 20
        self.id = -1  # by which the control plane knows it now
        self.end: Endpoint | None = None
        self.processes: dict[int, Process] = {}
        self.parents: dict[int, bool] = {}  # -> ready
        self.up = True
        self.boot = 0  # counts how often it began anew: what was to happen before does not

    def joined(self, id: int, end: Endpoint) -> None:
        self.id, self.end = id, end
        end.received = self._received
        end.lost = partial(self._cut_off, end)

    def _cut_off(self, end: Endpoint) -> None:
        """The control plane is not to be reached: everything here ends, and the machine looks for it again."""
        if end is not self.end:
            return  # it was found again meanwhile
        self.clear()
        self.end = None
        if self.number:
            self.world.look_for_work(self)

    def clear(self) -> None:
        """Every process ends."""
        self.boot += 1
        self.processes.clear()
        self.parents.clear()

    # -- commands ------------------------------------------------------------------------------------------------

    def _received(self, message: bytes) -> None:
        kind, *rest = wire.unbody(message)
        (self._start, self._stop, self._run, self._interrupt, self._grow, self._prune)[kind](*rest)

    def _tell(self, *frame: Any) -> None:
        if self.end is not None:
            self.end.send(wire.body(*frame))

    def _later(self, seconds: float, action: Any, *args: Any) -> None:
        self.world.timeline.after(seconds, self._if_still, self.boot, action, args)

    def _if_still(self, boot: int, action: Any, args: tuple[Any, ...]) -> None:
        if boot == self.boot and self.up:
            action(*args)

    def _start(self, instance: int, function: str, node: int) -> None:
        plan, r = self.world.plan, self.r
        spec = self.world.specs[function]
        process = self.processes[instance] = Process(instance, spec)
        self.world.oracle.started(self, process)
        took_s = r.expovariate(1.0) * plan.start_s
        if node and node not in self.parents:
            self._later(0.0, self._exit, instance, "its parent is gone")
        elif r.random() < plan.start_fails:
            broken = r.random() < 0.3
            self._later(took_s, self._broken if broken else self._exit, instance, "it could not start")
        elif r.random() >= plan.start_hangs:
            self._later(took_s, self._ready, instance)

    def _ready(self, instance: int) -> None:
        process = self.processes.get(instance)
        if process is not None and not process.ending:
            process.ready = True
            self._tell(FRAME, instance, [wire.READY, [0.0, 0.1]])

    def _broken(self, instance: int, reason: str) -> None:
        if instance in self.processes:
            self._tell(FRAME, instance, [wire.BROKEN, FAILURE])
            self._exit(instance, reason)

    def _exit(self, instance: int, reason: str) -> None:
        process = self.processes.pop(instance, None)
        if process is not None:
            self._tell(EXITED, instance, reason)

    def _stop(self, instance: int, kill: bool) -> None:
        process = self.processes.get(instance)
        if process is not None:
            process.ending = True
            if kill:
                self._exit(instance, "it was killed")
            else:
                self._later(self.r.random() * 0.5, self._exit, instance, "it was stopped")

    def _run(self, instance: int, calls: list[int], inputs: list[bytes], batch: bool) -> None:
        process = self.processes.get(instance)
        if process is None:
            return  # it is gone, and the control plane will hear of it
        plan, r, now = self.world.plan, self.r, self.world.timeline.now
        for call, data in zip(calls, inputs, strict=True):
            process.calls[call] = self.world.oracle.began(self, process, call, data)
        self.world.oracle.loaded(self, process)
        took_s = r.expovariate(1.0) * plan.run_s
        for call in calls:
            if not batch:
                took_s = r.expovariate(1.0) * plan.run_s
            begin_s = now
            if process.spec.concurrency == 1 and not batch:
                begin_s = max(now, process.free_s)
                process.free_s = begin_s + took_s
            self._later(begin_s + took_s - now, self._done, instance, call, took_s)

    def _done(self, instance: int, call: int, took_s: float) -> None:
        process = self.processes.get(instance)
        if process is None or call not in process.calls or process.stuck:
            return
        plan, r = self.world.plan, self.r
        if r.random() < plan.call_kills:
            self._exit(instance, "its process was ended by SIGSEGV")
            return
        if r.random() < plan.call_hangs:
            process.stuck = process.spec.concurrency == 1
            return
        number = process.calls.pop(call)
        ok = r.random() >= plan.call_fails
        self.world.oracle.answered(process, call, number, ok)
        output = b"%sof call %d, execution %d" % (b"P" if ok else FAILURE, call, number)
        self._tell(FRAME, instance, [wire.DONE, call, ok, took_s, output, "", False])
        if process.spec.single_use:
            self._exit(instance, "it was for one call")

    def _interrupt(self, instance: int, call: int) -> None:
        process = self.processes.get(instance)
        if process is not None and call in process.calls:
            process.calls.pop(call)
            self._tell(FRAME, instance, [wire.DONE, call, False, 0.0, FAILURE, "", False])

    def _grow(self, node: int, parent: int) -> None:
        if parent and parent not in self.parents:
            self._later(0.0, self._tell, GONE, node, "its parent is gone")
            return
        self.parents[node] = False
        fails = self.r.random() < self.world.plan.parent_dies
        self._later(self.r.random() * self.world.plan.start_s, self._parent_ends if fails else self._parked, node)

    def _parked(self, node: int) -> None:
        if node in self.parents:
            self.parents[node] = True
            self._tell(PARKED, node, 0.1, 20 << 20)
            if self.r.random() < self.world.plan.parent_dies:
                self._later(self.r.random() * 5.0, self._parent_ends, node)

    def _parent_ends(self, node: int) -> None:
        if self.parents.pop(node, None) is not None:
            self._tell(GONE, node, "it was killed")

    def _prune(self, node: int) -> None:
        self.parents.pop(node, None)
