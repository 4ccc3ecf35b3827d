"""Instances of a simulated day: the user's functions, run for real, in tasks instead of processes."""

from __future__ import annotations

import inspect
from collections import deque
from typing import TYPE_CHECKING, Any

from nubes.drivers.local import endings, loading, payload, wire
from nubes.functions import events as e
from nubes.functions.spec import FunctionSpec
from nubes.storm import loops
from nubes.storm.tasks import Home

if TYPE_CHECKING:
    from nubes.storm.world import World

START_S = 0.05  # from the decision to start an instance until its code runs; an exit takes as long
GROW_S = 0.2  # until a parent in the process tree is parked
NEWS_S = 0.01  # until the control plane knows that a process is gone
FIRST_OWNER = 1_000  # owners below it are clients


class Instance(Home):
    """A simulated process: it takes frames and runs their calls, one after the other or several at once."""

    def __init__(self, world: World, command: e.StartInstance, spec: FunctionSpec) -> None:
        super().__init__({}, local=False, owner=FIRST_OWNER + command.instance)
        self.world = world
        self.id = command.instance
        self.spec = spec
        self.machine = command.machine
        self.variant = bytes.fromhex(command.variant[1:])
        self.frames: deque[list[Any]] = deque()
        self.idle: Any = None  # its main task, while it waits for frames
        self.target: Any = None

    def send(self, *frame: Any) -> None:
        """What the control plane says to it."""
        self.frames.append(list(frame))
        if self.idle is not None:
            self.world.tasks.wake(self.idle)
            self.idle = None

    def live(self) -> None:
        """Its whole life, as one task."""
        plane = self.world.plane
        self.world.be(self)
        try:
            app, self.modules = self.world.program.load()
            app.deployment.client = self.world.client  # type: ignore[assignment]
            self.settle()
            self.target = loading.raw(app.functions[self.spec.name.partition("/")[2]])
            if self.spec.kind == "class":
                args, kwargs = payload.loads(self.variant) if self.variant else ((), {})
                self.target = self.target(*args, **kwargs)
                self._hooks("enter", True)
                self._hooks("enter", False)
        except BaseException as error:
            plane.instance_frame(self.id, [wire.BROKEN, endings.failure(error)])
            return
        plane.instance_frame(self.id, [wire.READY, [START_S]])
        while True:
            while not self.frames:
                self.idle = self.world.tasks.current
                self.world.tasks.wait("calls")
            frame = self.frames.popleft()
            if frame[0] == wire.STOP:
                break
            self._take(*frame[1:])
            if self.spec.single_use:
                break
        if self.spec.kind == "class":
            self._hooks("exit", False)
        self.world.hands.ended(self, "its process exited with code 0")

    def _take(self, calls: tuple[int, ...], method: str, hop: bool, inputs: list[bytes], batch: bool) -> None:
        function = getattr(self.target, method) if method else self.target
        if self.spec.batching is not None:
            self._run_batch(calls, function, inputs)
        elif self.spec.concurrency > 1:
            for call, data in zip(calls, inputs, strict=True):
                self.world.tasks.start(lambda call=call, data=data: self._run(call, function, hop, data), self)  # type: ignore[misc]
        else:
            for call, data in zip(calls, inputs, strict=True):
                self._run(call, function, hop, data)

    def _run(self, call: int, function: Any, hop: bool, data: bytes) -> None:
        begun = self.world.tasks.now
        try:
            value = payload.loads(data)
            args, kwargs = ((value,), {}) if hop else value
            self.world.begin(call, self, args, kwargs)
            result = self._finished(function(*args, **kwargs))
            if inspect.isgenerator(result):
                for item in result:
                    self.world.plane.instance_frame(self.id, [wire.YIELDED, call, payload.dumps(item, None)])
                result = None
            ok, out, pushed = True, payload.dumps(result, None), ""
            self.world.tell("returns", result)
        except BaseException as error:
            ok, out, pushed = False, endings.failure(error), endings.backpressure(error)
            self.world.tell("raises", error)
        self.world.finish(self)
        took = self.world.tasks.now - begun
        self.world.plane.instance_frame(self.id, [wire.DONE, call, ok, took, out, pushed, False])

    def _run_batch(self, calls: tuple[int, ...], function: Any, inputs: list[bytes]) -> None:
        begun = self.world.tasks.now
        try:
            loaded = [payload.loads(data) for data in inputs]
            args = [[one[0][position] for one in loaded] for position in range(len(loaded[0][0]))]
            kwargs = {key: [one[1][key] for one in loaded] for key in loaded[0][1]}
            self.world.begin(calls[0], self, tuple(args), kwargs)
            results = list(self._finished(function(*args, **kwargs)))
            if len(results) != len(calls):
                raise TypeError(f"A batched function returned {len(results)} results for {len(calls)} inputs.")
            ok, outputs, pushed = True, [payload.dumps(result, None) for result in results], ""
        except BaseException as error:
            ok, outputs = False, [endings.failure(error)] * len(calls)
            pushed = endings.backpressure(error)
        self.world.finish(self)
        took = (self.world.tasks.now - begun) / len(calls)
        for call, out in zip(calls, outputs, strict=True):
            self.world.plane.instance_frame(self.id, [wire.DONE, call, ok, took, out, pushed, False])

    def _hooks(self, kind: str, snap: bool) -> None:
        """As `loading.run_hooks`, but that coroutines run in virtual time."""
        for name in dir(type(self.target)):
            method = getattr(type(self.target), name, None)
            if getattr(method, "__nubes_hook__", None) == (kind, snap):
                self._finished(getattr(self.target, name)())

    def _finished(self, result: Any) -> Any:
        """What a function gave; of an async one, what comes of it."""
        if inspect.isasyncgen(result):
            return loops.each(self.world.tasks, result)
        return loops.finish(self.world.tasks, result) if inspect.iscoroutine(result) else result


class SimulatedHands:
    """Does what the controller commands, in virtual time. See `nubes.drivers.local.plane.Hands`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.instances: dict[int, Instance] = {}

    def start(self, command: e.StartInstance) -> None:
        spec = self.world.specs[command.function[: len(command.function) - len(command.variant)]]
        one = self.instances[command.instance] = Instance(self.world, command, spec)
        self.world.tasks.call_later(START_S, self._begin, one)

    def _begin(self, one: Instance) -> None:
        if self.instances.get(one.id) is one:
            self.world.tasks.start(one.live, one)

    def stop(self, command: e.StopInstance) -> None:
        one = self.instances.get(command.instance)
        if one is None:
            return
        if command.kill or not one.tasks:
            self.world.tasks.call_soon(self.kill, one, command.reason)
        else:
            one.send(wire.STOP)

    def dispatch(self, command: e.Dispatch, keep: bool, inputs: list[bytes]) -> None:
        one = self.instances.get(command.instance)
        if one is not None:
            one.send(wire.RUN, command.calls, command.method, command.hop, inputs, command.batch)

    def interrupt(self, command: e.Interrupt) -> None:
        """A plain function cannot be interrupted: it goes on, and its answer finds nobody."""

    def grow(self, command: e.GrowNode) -> None:
        self.world.loop.call_later(GROW_S, self.world.plane.feed, e.NodeReady(command.node, GROW_S, 1 << 20))

    def prune(self, command: e.PruneNode) -> None:
        pass

    def drained(self, command: e.Drained) -> None:
        pass

    def forget(self, data: bytes) -> None:
        pass

    def function_of(self, instance: int) -> str:
        return self.instances[instance].spec.name if instance in self.instances else ""

    # -- ends --------------------------------------------------------------------------------------------------------

    def kill(self, one: Instance, reason: str) -> None:
        """Ends an instance at once. Does not return to a task of its own."""
        if self.instances.get(one.id) is one:
            self.ended(one, reason)
            self.world.tasks.end(one)

    def ended(self, one: Instance, reason: str) -> None:
        """Its process is gone, and with it its connection: the control plane hears of it."""
        del self.instances[one.id]
        loop, plane = self.world.loop, self.world.plane
        loop.call_later(NEWS_S, plane.feed, e.ClientGone(one.owner))
        loop.call_later(NEWS_S, plane.feed, e.InstanceLost(one.id, reason))

    def lose(self, machine: int) -> None:
        """Ends everything on a machine; the control plane hears of the machine alone."""
        gone = [one for one in self.instances.values() if machine in (one.machine, -1)]
        for one in gone:
            del self.instances[one.id]
            self.world.loop.call_later(NEWS_S, self.world.plane.feed, e.ClientGone(one.owner))
        last = None
        for one in gone:
            if self.world.tasks.current is not None and self.world.tasks.current.home is one:
                last = one
            else:
                self.world.tasks.end(one)
        if last is not None:
            self.world.tasks.end(last)
