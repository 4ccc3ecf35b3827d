"""The heart of a control plane: events to the log and the controller, commands to who does them, answers to who waits.

It opens no file and starts no process by itself: the journal, the loop, the clock and the hands are given to it. So the
same code runs live and in simulations that break whatever can break.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from nubes.drivers.local import disruption, payload, unattended, wire
from nubes.drivers.local.journal import Journal
from nubes.functions import events as e
from nubes.functions.controller import Functions
from nubes.kernel.clock import Clock, WallClock
from nubes.kernel.errors import Unavailable
from nubes.kernel.message import Event
from nubes.kernel.policy import SEAMS


class Sink(Protocol):
    """Whoever waits for a call."""

    def result(self, call: int, status: str, reason: str, output: bytes, released: bool = False) -> None: ...
    def item(self, call: int, output: bytes) -> None: ...
    def printed(self, call: int, function: str, stream: str, text: str) -> None: ...


class Hands(Protocol):
    """Whoever starts instances, gives them calls and ends them: processes here, agents elsewhere, or a model."""

    def start(self, command: e.StartInstance) -> None: ...
    def stop(self, command: e.StopInstance) -> None: ...
    def dispatch(self, command: e.Dispatch, keep: bool, inputs: list[bytes]) -> None: ...
    def interrupt(self, command: e.Interrupt) -> None: ...
    def grow(self, command: e.GrowNode) -> None: ...
    def prune(self, command: e.PruneNode) -> None: ...
    def drained(self, command: e.Drained) -> None: ...
    def function_of(self, instance: int) -> str: ...


class Plane:
    """One log, one state, and those who wait. `recover` reads the log back; `begin` starts where it ended."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.controller: Functions
        self.clock: Clock = WallClock()
        self.now = 0.0
        self.inputs: dict[int, bytes] = {}  # of calls that are not kept in the log
        self.outputs: dict[int, bytes] = {}
        self.released: set[int] = set()  # calls whose arguments in shared memory nobody reads any more
        self.sinks: dict[int, Sink] = {}
        self._shared: set[int] = set()  # plain calls that get the kept answer of another
        self.watchers: dict[int, list[Sink]] = {}  # who fetches a durable call
        self.prints: Callable[[int, str, str, str], None] = lambda *_: None
        self._observers: dict[type[Any], Callable[[Any], None]] = {}

    # -- life ----------------------------------------------------------------------------------------------------

    def recover(self, loop: asyncio.AbstractEventLoop, clock: Callable[[float], Clock] = WallClock) -> None:
        """Folds the log. `clock` makes one that never shows less than the time it is given."""
        self.loop = loop
        self.controller, self.now = self.journal.recover(loop)
        self.clock = clock(self.now)

    def begin(self, hands: Hands, policies: dict[str, str], *machines: e.MachineReady | e.MachineLost) -> None:
        """Goes on from the log's end: with `machines` that are there, or are not, and `policies` by seam."""
        self.hands = hands
        self._do: dict[type[Any], Callable[[Any], None]] = {
            e.StartInstance: hands.start,
            e.StopInstance: hands.stop,
            e.Dispatch: self._dispatch,
            e.Interrupt: hands.interrupt,
            e.Resolve: self._resolve,
            e.SetTimer: self._set_timer,
            e.GrowNode: hands.grow,
            e.PruneNode: hands.prune,
            e.Drained: hands.drained,
            e.AskDisruption: lambda command: disruption.ask(self, command),
        }
        fresh = not self.journal.log.count
        if not fresh:
            self.feed(e.Restarted())
        for machine in machines:
            self.feed(machine)
        for seam, info in SEAMS.items():
            text = policies.get(seam) or (info.default if fresh else "")
            if text:
                self.feed(e.PolicySet(seam, text))

    # -- the one way in ------------------------------------------------------------------------------------------

    def feed(self, event: Event, at: float = 0.0) -> None:
        """Takes an event: time, log, controller, commands. `at`: not before this time."""
        now = max(self.clock(), at, self.now)
        self.now = now
        self.journal.append(now, event)
        observer = self._observers.get(type(event))
        if observer is not None:
            observer(event)
        do = self._do
        for command in self.controller.handle(event, now):
            do[type(command)](command)

    def observe(self, kind: type[Any], then: Callable[[Any], None]) -> None:
        """Calls `then` with each event of this kind before it is handled, or each command before it is done."""
        where = self._do if kind in self._do else self._observers
        following = where.get(kind)

        def both(one: Any) -> None:
            then(one)
            if following is not None:
                following(one)

        where[kind] = both

    # -- calls ---------------------------------------------------------------------------------------------------

    def submit(self, event: e.Submitted, data: bytes, sink: Sink | None) -> None:
        """A call from outside; `sink` gets what becomes of it. Raises `Unavailable` if it cannot be kept as asked."""
        if event.keep and self.journal.full:
            raise Unavailable(self.journal.full, "The call was not accepted.")
        if sink is not None:
            self.sinks[event.call] = sink
        if not event.keep:
            self.inputs[event.call] = data
            controller = self.controller
            if event.key and controller.keys.get((event.function + event.variant, event.key)) in controller.results:
                self._shared.add(event.call)
        self.feed(event)

    def _dispatch(self, command: e.Dispatch) -> None:
        inputs = list(command.inputs)
        keep = bool(inputs)
        if not inputs or not all(inputs):
            kept = inputs or [b""] * len(command.calls)  # empty: not kept in the log, or a call that the clock made
            inputs = [
                self.inputs.get(call) or data or payload.NO_ARGUMENTS
                for call, data in zip(command.calls, kept, strict=True)
            ]
        self.hands.dispatch(command, keep, inputs)

    def instance_frame(self, instance: int, frame: list[Any]) -> None:
        kind = frame[0]
        if kind == wire.DONE:
            _, id, ok, took, output, pushed, released = frame
            call = self.controller.calls.get(id)
            if released and self.inputs.get(id, b"")[:1] == b"S" and not (call and call.copies):
                self.released.add(id)
            if call is not None and not call.keep:
                runs_it = self.controller.instances.get(instance)
                if runs_it is None or id not in runs_it.calls:
                    pass  # that instance was given up: the call is somebody else's by now
                elif ok and call.route:
                    self.inputs[id] = output  # the next step's input
                else:
                    self.outputs[id] = output
                self.feed(e.Finished(id, instance, ok, took, b"", pushed))
            else:
                self.feed(
                    e.Finished(id, instance, ok, took, output if call is not None else b"", pushed, call is not None)
                )
        elif kind == wire.YIELDED:
            sink = self.sinks.get(frame[1])
            if sink is not None:
                sink.item(frame[1], frame[2])
        elif kind == wire.PRINTED:
            self._printed(instance, frame[1], frame[2], frame[3])
        elif kind == wire.READY:
            self.feed(e.InstanceReady(instance, tuple(frame[1])))
        elif kind == wire.BROKEN:
            self.feed(e.InstanceLost(instance, "it failed to start", frame[1]))

    def _printed(self, instance: int, call: int, stream: str, text: str) -> None:
        function = self.hands.function_of(instance) or "?"
        self.prints(call, function, stream, text)
        sink = self.sinks.get(call)
        if sink is not None:
            sink.printed(call, function, stream, text)

    def _resolve(self, command: e.Resolve) -> None:
        id = command.call
        self.inputs.pop(id, None)
        output = self.outputs.pop(id, b"")
        output = command.output or output
        released = id in self.released
        self.released.discard(id)
        sink = self.sinks.pop(id, None)
        watchers = self.watchers.pop(id, ())
        told = [*([sink] if sink else []), *watchers]
        if id in self.controller.results or id in self._shared:
            self._shared.discard(id)
            if told:
                self.journal.when_safe(lambda: _tell(told, command, output))
            elif id in self.controller.results and command.status in (e.FAILED, e.TIMED_OUT):
                function = self.controller.results[id].function
                self.prints(id, function, "stderr", unattended.report(id, command.status, command.reason, output))
        else:
            for one in told:
                one.result(id, command.status, command.reason, output, released)

    def watch(self, call: int, sink: Sink) -> bool:
        """Tells `sink` the answer of a durable call, now or later. False if there is no such call."""
        result = self.controller.results.get(call)
        if result is not None:
            self.journal.when_safe(lambda: sink.result(call, result.status, result.reason, result.output))
            return True
        if call in self.controller.calls:
            self.watchers.setdefault(call, []).append(sink)
            return True
        return False

    def unwatch(self, call: int, sink: Sink) -> None:
        watchers = self.watchers.get(call, [])
        if sink in watchers:
            watchers.remove(sink)

    def _set_timer(self, command: e.SetTimer) -> None:
        if command.at < 1e300:
            self.loop.call_later(max(0.0, command.at - self.now), self.feed, e.TimerFired(command.key), command.at)


def _tell(sinks: list[Sink], command: e.Resolve, output: bytes) -> None:
    for sink in sinks:
        sink.result(command.call, command.status, command.reason, output)
