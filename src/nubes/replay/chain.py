"""Which steps of a log concern a call: its own, those of the instance that served it, and why no other was there."""

from __future__ import annotations

from typing import Any

import msgspec

from nubes.functions import events as e
from nubes.functions.controller import Functions
from nubes.functions.state import Call
from nubes.kernel.units import show_seconds

Steps = dict[int, str]  # record number -> what happened there, as far as it concerns the call


class Chain(msgspec.Struct):
    """What is known of one call."""

    function: str = ""
    steps: Steps = {}
    found: tuple[int, int, int] = (0, 0, 0)  # instances of its function at its arrival: busy, idle, starting
    last_stop: str = ""  # why the function's last instance before went
    how: int = -1
    waited_s: float = 0.0
    instance: int = 0
    alias: int = 0  # the call whose answer it shares
    status: str = ""
    reason: str = ""

    def add(self, number: int, role: str) -> None:
        self.steps.setdefault(number, role)

    def verdict(self) -> str:
        """How the call got its instance, in a sentence or two."""
        if self.alias:
            return f"It has the idempotency key of call {self.alias} and shares its answer."
        if self.how < 0:
            return f"It never got an instance. {self.reason}".rstrip()
        busy, idle, starting = self.found
        waited = f"It waited {show_seconds(self.waited_s)} and got instance {self.instance}"
        if self.how == e.WARM:
            return f"An idle instance took it at once: instance {self.instance}. Nothing had to be decided for that."
        if busy + idle == 1:
            why = "The one instance of its function was busy."
        elif busy + idle:
            why = f"All {busy + idle} instances of its function were busy."
        elif starting:
            why = f"Its function had no instance yet; {starting} were starting."
        else:
            why = "No instance of its function was loaded" + (f": {self.last_stop}." if self.last_stop else " yet.")
        if self.how == e.DELAYED:
            return f"{why} {waited}, which came free before a new one was ready."
        return f"{why} {waited}, which was started meanwhile."


class Chains:
    """Folds a log and keeps the chain of each wanted call."""

    def __init__(self, wanted: set[int]) -> None:
        self.wanted = wanted
        self.of: dict[int, Chain] = {}
        self.controller = Functions()
        self._started: dict[int, Steps] = {}  # instance -> the steps of its start
        self._grown: dict[int, Steps] = {}  # parent -> the steps of its growth
        self._fell_idle: dict[int, int] = {}  # instance -> when it last fell idle
        self._function: dict[int, str] = {}  # instance -> its function
        self._stopped: dict[str, tuple[Steps, str]] = {}  # function -> when and why its last instance went

    def step(self, number: int, now: float, event: Any) -> None:
        """One record of the log."""
        before = self.controller.calls if not isinstance(event, e.Restarted) else dict(self.controller.calls)
        self._happened(number, event)
        for command in self.controller.handle(event, now):
            self._commanded(number, now, command)
        if isinstance(event, e.Submitted) and event.call in self.wanted:
            self._chain(event.call).alias = self.controller.aliases.get(event.call, 0)
        elif isinstance(event, e.TimerFired) and event.key[0].startswith("schedule/"):
            self._made_by_the_clock(number)
        elif isinstance(event, e.Restarted):
            for call in self.wanted & (set(before) - set(self.controller.calls)):
                self._chain(call).add(number, "the control plane came back without it")

    def _chain(self, call: int) -> Chain:
        if call not in self.of:
            self.of[call] = Chain(steps={})
        return self.of[call]

    def _add(self, call: int, number: int, role: str) -> None:
        if call in self.wanted:
            self._chain(call).add(number, role)

    def _arrived(self, call: int, function: str) -> None:
        f = self.controller.functions.get(function)
        chain = self._chain(call)
        chain.function = function
        if f is not None:
            chain.found = (f.busy, f.idle, f.starting)

    def _happened(self, number: int, event: Any) -> None:
        """Before the controller is told."""
        if isinstance(event, e.Submitted):
            self._add(event.call, number, "the call arrived")
            if event.call in self.wanted:
                self._arrived(event.call, event.function + event.variant)
        elif isinstance(event, e.Cancelled):
            self._add(event.call, number, "it was cancelled")
        elif isinstance(event, e.Finished):
            self._add(event.call, number, f"instance {event.instance} answered it")
            self._fell_idle[event.instance] = number
        elif isinstance(event, e.InstanceReady):
            self._fell_idle[event.instance] = number
            if event.instance in self._started:
                self._started[event.instance][number] = f"instance {event.instance} got ready"
        elif isinstance(event, e.InstanceLost):
            instance = self.controller.instances.get(event.instance)
            for call in instance.calls if instance else ():
                self._add(call, number, f"instance {event.instance} was lost with it")
        elif isinstance(event, e.NodeReady) and event.node in self._grown:
            self._grown[event.node][number] = f"parent {event.node} could be forked"

    def _commanded(self, number: int, now: float, command: Any) -> None:
        """After the controller was told."""
        if isinstance(command, e.Dispatch):
            for call in command.calls:
                if call in self.wanted:
                    self._dispatched(self.controller.calls[call], number, now, command)
        elif isinstance(command, e.Resolve):
            self._add(command.call, number, "it got its answer")
            if command.call in self.wanted:
                chain = self._chain(command.call)
                chain.status, chain.reason = command.status, command.reason
        elif isinstance(command, e.StartInstance):
            self._start(number, command)
        elif isinstance(command, e.GrowNode):
            above = self._grown.get(command.parent, {})
            self._grown[command.node] = {**above, number: f"parent {command.node} began to grow"}
        elif isinstance(command, e.StopInstance):
            steps = self._idle(command.instance)
            steps[number] = f"instance {command.instance}, the last one before, was stopped: {command.reason}"
            self._stopped[self._function.get(command.instance, "")] = (steps, command.reason)
            self._started.pop(command.instance, None)
            self._fell_idle.pop(command.instance, None)

    def _start(self, number: int, command: e.StartInstance) -> None:
        source = f"forked from parent {command.node}" if command.node else "in a fresh interpreter"
        parents = self._grown.get(command.node, {})
        self._started[command.instance] = {**parents, number: f"instance {command.instance} was started, {source}"}
        self._function[command.instance] = command.function
        for entry in self.controller.functions[command.function].waiting:
            call = entry[2] if isinstance(entry, tuple) else entry
            self._add(call.id, number, f"instance {command.instance} was started while it waited")

    def _idle(self, instance: int) -> Steps:
        number = self._fell_idle.get(instance)
        return {} if number is None else {number: f"instance {instance} fell idle"}

    def _dispatched(self, call: Call, number: int, now: float, command: e.Dispatch) -> None:
        chain = self._chain(call.id)
        if command.copy:
            chain.add(number, f"instance {command.instance} got a copy")
            return
        chain.function = call.function.name
        chain.how, chain.waited_s, chain.instance = command.how, now - call.arrived_s, command.instance
        steps = {**self._started.get(command.instance, {}), **self._idle(command.instance)}
        if command.how == e.COLD and not sum(chain.found) and chain.function in self._stopped:
            before, chain.last_stop = self._stopped[chain.function]
            steps |= before
        for step, role in steps.items():
            if step != number:
                chain.add(step, role)
        chain.add(number, "")
        chain.steps[number] = "; ".join(filter(None, (chain.steps[number], f"instance {command.instance} took it")))

    def _made_by_the_clock(self, number: int) -> None:
        newest = next(reversed(self.controller.calls), 0)
        if newest in self.wanted and newest not in self.of:
            self._add(newest, number, "its schedule made the call")
            self._arrived(newest, self.controller.calls[newest].function.name)
