"""A small cloud for tests: the functions controller, with a heap of events in place of a driver."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Any

from nubes.functions import events as e
from nubes.functions.controller import Functions
from nubes.functions.spec import FunctionSpec


class Cloud:
    """Every start takes `cold_s`, every call `exec_s` (or its function's own), every parent `grow_s`."""

    def __init__(
        self,
        specs: Iterable[FunctionSpec],
        cold_s: float | dict[str, float] = 1.0,
        exec_s: float | dict[str, float] = 0.1,
        grow_s: float = 0.5,
        node_bytes: int = 1 << 20,
        backpressure: dict[str, str] | None = None,
        **policies: Any,
    ) -> None:
        self.controller = Functions(**{"cold_start": "fresh", **policies})
        self.cold_s, self.exec_s, self.grow_s, self.node_bytes = cold_s, exec_s, grow_s, node_bytes
        self.backpressure = backpressure or {}
        self.heap: list[tuple[float, int, Any]] = []
        self.sequence = self.calls = 0
        self.now = 0.0
        self.log: list[tuple[float, Any]] = []  # every command, with its time
        self.function_of: dict[int, str] = {}
        self.most = 0  # instances at once
        apps: dict[str, list[FunctionSpec]] = {}
        for spec in specs:
            apps.setdefault(spec.name.partition("/")[0], []).append(spec)
        for app, functions in apps.items():
            self._handle(e.Deployed(app, 1, tuple(functions)))

    def call(self, function: str, *at: float) -> None:
        for when in at:
            self.calls += 1
            self.function_of[self.calls] = function
            self._push(when, e.Submitted(self.calls, function))

    def run(self, until: float = float("inf")) -> None:
        while self.heap and self.heap[0][0] <= until:
            self.now, _, event = heappop(self.heap)
            self._handle(event)
        self.now = max(self.now, until) if until < float("inf") else self.now

    def starts(self, function: str = "") -> list[float]:
        wanted = [(at, c) for at, c in self.log if isinstance(c, e.StartInstance)]
        return [at for at, c in wanted if not function or c.function == function]

    def stops(self) -> list[tuple[float, int]]:
        return [(at, c.instance) for at, c in self.log if isinstance(c, e.StopInstance)]

    def how(self) -> list[int]:
        """How each call got its instance, in the order of dispatch."""
        return [c.how for _, c in self.log if isinstance(c, e.Dispatch)]

    def dispatched(self, function: str = "") -> list[float]:
        wanted = [(at, c.calls[0]) for at, c in self.log if isinstance(c, e.Dispatch)]
        return [at for at, call in wanted if not function or self.function_of[call] == function]

    def _push(self, at: float, event: Any) -> None:
        self.sequence += 1
        heappush(self.heap, (at, self.sequence, event))

    def _handle(self, event: Any) -> None:
        for command in self.controller.handle(event, self.now):
            self.log.append((self.now, command))
            self._do(command)
        self.most = max(self.most, len(self.controller.instances))

    def _do(self, command: Any) -> None:
        match command:
            case e.StartInstance():
                self._push(self.now + _of(self.cold_s, command.function), e.InstanceReady(command.instance))
            case e.Dispatch():
                for call in command.calls:
                    function = self.controller.instances[command.instance].function.spec.name
                    took = _of(self.exec_s, function)
                    callee = self.backpressure.get(function, "")
                    ended = e.Finished(call, command.instance, not callee, took, backpressure=callee)
                    self._push(self.now + took, ended)
            case e.SetTimer():
                self._push(command.at, e.TimerFired(command.key))
            case e.GrowNode():
                self._push(self.now + self.grow_s, e.NodeReady(command.node, self.grow_s, self.node_bytes))
            case _:
                pass


def _of(value: float | dict[str, float], function: str) -> float:
    return value[function] if isinstance(value, dict) else value
