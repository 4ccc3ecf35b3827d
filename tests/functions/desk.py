"""Plays events by hand: every event goes in with its time, commands come out, the invariants hold after each."""

from __future__ import annotations

from typing import Any, TypeVar

from nubes.functions import events as e
from nubes.functions.controller import Functions
from nubes.functions.invariants import check, excess
from nubes.functions.spec import FunctionSpec

GIB = 1 << 30
C = TypeVar("C")


class Desk:
    """A controller with one app `a`, whose functions are those of `specs`."""

    def __init__(self, *specs: FunctionSpec, **options: Any) -> None:
        self.c = Functions(**{"keep_alive": "no-unload", "cold_start": "fresh", **options})
        self.now = 0.0
        self.calls = 0
        self.last: list[Any] = []  # commands of the last event
        self.all: list[Any] = []
        self.version = 0
        if specs:
            self.deploy(*specs)

    def __call__(self, event: Any, after: float = 0.0) -> list[Any]:
        self.now += after
        self.last = self.c.handle(event, self.now)
        self.all += self.last
        assert check(self.c) == []
        return self.last

    def deploy(self, *specs: FunctionSpec, app: str = "a", ephemeral: bool = False) -> list[Any]:
        self.version += 1
        return self(e.Deployed(app, self.version, specs, ephemeral))

    def call(self, function: str, after: float = 0.0, **options: Any) -> int:
        """Submits a call of `a/function`; returns its id."""
        self.calls += 1
        self(e.Submitted(self.calls, f"a/{function}", **options), after)
        return self.calls

    def ready(self, *instances: int, after: float = 0.0) -> None:
        for instance in instances or self.starting():
            self(e.InstanceReady(instance), after)

    def done(
        self, call: int, after: float = 0.0, ok: bool = True, output: bytes = b"", exec_s: float = 1.0
    ) -> list[Any]:
        """The instance that runs `call` answers it."""
        return self(e.Finished(call, self.c.calls[call].instance, ok, exec_s, output), after)

    def timer(self, *key: Any, after: float = 0.0) -> list[Any]:
        return self(e.TimerFired(key), after)

    def starting(self) -> list[int]:
        return [id for id, instance in self.c.instances.items() if not instance.ready]

    def of(self, kind: type[C], commands: list[Any] | None = None) -> list[C]:
        return [command for command in (self.last if commands is None else commands) if isinstance(command, kind)]

    def status(self, call: int) -> str:
        """What the caller was told, or where the call is."""
        told = [c.status for c in self.of(e.Resolve, self.all) if c.call == call]
        assert len(told) <= 1
        if told:
            return told[0]
        return e.RUNNING if self.c.calls[call].instance > 0 else e.PENDING

    def reason(self, call: int) -> str:
        return next(c.reason for c in self.of(e.Resolve, self.all) if c.call == call)

    def running(self) -> list[int]:
        return sorted(id for id, call in self.c.calls.items() if call.instance > 0)

    def within_capacity(self) -> bool:
        return excess(self.c) == (0.0, 0.0)


def spec(name: str = "f", **options: Any) -> FunctionSpec:
    return FunctionSpec(name=f"a/{name}", **options)
