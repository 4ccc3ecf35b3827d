"""The processes of a machine as models: they start, run calls, answer, fail, hang and die, and are forked from parents.

Between them and who commands them, the control plane or an agent, there is a connection each way.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from nubes.drivers.local import wire
from nubes.drivers.sim.faults.loop import Lifetime, VirtualLoop
from nubes.functions import events as e
from nubes.functions.spec import FunctionSpec

if TYPE_CHECKING:
    from nubes.drivers.sim.faults.machines import Machine
    from nubes.drivers.sim.faults.world import World

FAILURE = b"P" + pickle.dumps(("ValueError", "ValueError: no", "a traceback"), 5)


class Process:
    """One instance. `life` is that of the control plane that had it started."""

    __slots__ = ("calls", "ending", "free_s", "id", "life", "ready", "spec", "stuck")

    def __init__(self, id: int, spec: FunctionSpec, life: int) -> None:
        self.id = id
        self.spec = spec
        self.life = life
        self.ready = False
        self.ending = False  # told to stop
        self.stuck = False  # a call hangs in it
        self.calls: dict[int, int] = {}  # call -> number of its execution
        self.free_s = 0.0  # when what it was given is done, if it runs one after the other


class Processes:
    """The hands of who runs on `loop`. `own` is the life of the processes themselves, if they can be stopped with it;
    `plane` gives the number of the control plane's life that commands come from."""

    def __init__(
        self, world: World, machine: Machine, loop: VirtualLoop, own: Lifetime | None,
        specs: Mapping[str, FunctionSpec], report: Callable[[Any], None], frame: Callable[[int, list[Any]], None],
        plane: Callable[[], int],
    ) -> None:  # fmt: skip
        self.world = world
        self.machine = machine
        self.specs = specs
        self.instances: dict[int, Process] = {}
        self.parents: dict[int, bool] = {}  # -> ready
        self.closed = False
        self.known_as = 0  # the machine, by the control plane
        self._loop = loop
        self._own = own
        self._report = report
        self._frame = frame
        self._plane = plane
        self._arrives = [0.0, 0.0]  # when the newest does that is on its way to the processes, and from them
        machine.processes.append(self)

    @property
    def r(self) -> random.Random:
        return self.machine.r

    def close(self) -> None:
        """Every process ends."""
        if not self.closed:
            self.closed = True
            self.machine.processes.remove(self)
        self.instances.clear()
        self.parents.clear()

    # -- to and fro ----------------------------------------------------------------------------------------------

    def start(self, command: e.StartInstance) -> None:
        name = command.function[: len(command.function) - len(command.variant)]
        self._order(self._start, command.instance, self.specs.get(name), command.node)

    def stop(self, command: e.StopInstance) -> None:
        self._order(self._stop, command.instance, command.kill)

    def dispatch(self, command: e.Dispatch, keep: bool, inputs: list[bytes]) -> None:
        self._order(self._run, command.instance, command.calls, inputs, command.batch)

    def interrupt(self, command: e.Interrupt) -> None:
        self._order(self._interrupt, command.instance, command.call)

    def grow(self, command: e.GrowNode) -> None:
        self._order(self._grow, command.node, command.parent)

    def prune(self, command: e.PruneNode) -> None:
        self._order(self._prune, command.node)

    def drained(self, command: e.Drained) -> None:
        """Nothing is to be done."""

    def forget(self, data: bytes) -> None:
        """Nothing is large here."""

    def function_of(self, instance: int) -> str:
        process = self.instances.get(instance)
        return process.spec.name if process else ""

    def _order(self, action: Callable[..., Any], *args: Any) -> None:
        self.world.timeline.at(self._arrival(0), self._if_open, action, args, life=self._own)

    def _tell(self, action: Callable[..., Any], *args: Any) -> None:
        self.world.timeline.at(self._arrival(1), self._if_open, action, args, life=self._loop.life)

    def _arrival(self, way: int) -> float:
        self._arrives[way] = at = max(self.world.timeline.now + self.world.near_s(), self._arrives[way])
        return at

    def _later(self, seconds: float, action: Callable[..., Any], *args: Any) -> None:
        self.world.timeline.after(seconds, self._if_open, action, args, life=self._own)

    def _if_open(self, action: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if not self.closed:
            action(*args)

    # -- instances -----------------------------------------------------------------------------------------------

    def _start(self, instance: int, spec: FunctionSpec | None, node: int) -> None:
        if spec is None or (node and node not in self.parents):
            self._tell(self._report, e.InstanceLost(instance, "its parent is gone"))
            return
        plan, r = self.world.plan, self.r
        process = self.instances[instance] = Process(instance, spec, self._plane())
        self.world.oracle.started(self.machine, process)
        took_s = r.expovariate(1.0) * plan.start_s
        if r.random() < plan.start_fails:
            broken = r.random() < 0.3
            self._later(took_s, self._broken if broken else self._exit, instance, "it could not start")
        elif r.random() >= plan.start_hangs:
            self._later(took_s, self._ready, instance)

    def _ready(self, instance: int) -> None:
        process = self.instances.get(instance)
        if process is not None and not process.ending:
            process.ready = True
            self._tell(self._frame, instance, [wire.READY, [0.0, 0.1], instance])

    def _broken(self, instance: int, reason: str) -> None:
        if instance in self.instances:
            self._tell(self._frame, instance, [wire.BROKEN, FAILURE])
            self._exit(instance, reason)

    def _exit(self, instance: int, reason: str) -> None:
        if self.instances.pop(instance, None) is not None:
            self._tell(self._report, e.InstanceLost(instance, reason))

    def _stop(self, instance: int, kill: bool) -> None:
        process = self.instances.get(instance)
        if process is not None:
            process.ending = True
            if kill:
                self._exit(instance, "it was killed")
            else:
                self._later(self.r.random() * 0.5, self._exit, instance, "it was stopped")

    def _run(self, instance: int, calls: list[int], inputs: list[bytes], batch: bool) -> None:
        process = self.instances.get(instance)
        if process is None:
            return  # it is gone, and the control plane will hear of it
        plan, r, now = self.world.plan, self.r, self.world.timeline.now
        for call, data in zip(calls, inputs, strict=True):
            process.calls[call] = self.world.oracle.began(process, call, data)
        self.world.oracle.loaded(self.machine, process)
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
        process = self.instances.get(instance)
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
        self._tell(self._frame, instance, [wire.DONE, call, ok, took_s, output, "", False])
        if process.spec.single_use:
            self._exit(instance, "it was for one call")

    def _interrupt(self, instance: int, call: int) -> None:
        process = self.instances.get(instance)
        if process is not None and call in process.calls:
            process.calls.pop(call)
            self._tell(self._frame, instance, [wire.DONE, call, False, 0.0, FAILURE, "", False])

    # -- parents -------------------------------------------------------------------------------------------------

    def _grow(self, node: int, parent: int) -> None:
        if parent and parent not in self.parents:
            self._tell(self._report, e.NodeLost(node, "its parent is gone"))
            return
        self.parents[node] = False
        fails = self.r.random() < self.world.plan.parent_dies
        self._later(self.r.random() * self.world.plan.start_s, self._parent_ends if fails else self._parked, node)

    def _parked(self, node: int) -> None:
        if node in self.parents:
            self.parents[node] = True
            self._tell(self._report, e.NodeReady(node, 0.1, 20 << 20))
            if self.r.random() < self.world.plan.parent_dies:
                self._later(self.r.random() * 5.0, self._parent_ends, node)

    def _parent_ends(self, node: int) -> None:
        if self.parents.pop(node, None) is not None:
            self._tell(self._report, e.NodeLost(node, "it was killed"))

    def _prune(self, node: int) -> None:
        self.parents.pop(node, None)
