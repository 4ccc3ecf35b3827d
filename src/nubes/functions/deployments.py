"""Apps are deployed, replaced and removed; what they want ahead of the first call gets ready."""

from __future__ import annotations

from math import inf

from nubes.functions import calendar
from nubes.functions import events as e
from nubes.functions.answers import resolve
from nubes.functions.disruptions import govern, verify_control
from nubes.functions.events import CANCELLED
from nubes.functions.instances import REPLACED, review, stop
from nubes.functions.queues import refill
from nubes.functions.replicas import replicas_of, verify_replicas
from nubes.functions.seams import KeepAlive
from nubes.functions.serving import ensure, released, serve
from nubes.functions.spec import FunctionSpec
from nubes.functions.state import Function, State
from nubes.kernel.errors import UsageError
from nubes.kernel.policy import make

VARIANT_IDLE_S = 86_400.0  # how long a parameterisation of a class is known after its last call
LOOK_S = 600.0


def app(function: str) -> str:
    """The app that a function is of."""
    return function.partition("/")[0]


def pool(c: State, name: str, variant: str, now: float) -> Function | None:
    """The instances of a function, or of one parameterisation of a class; None if no such function is deployed."""
    f = c.functions.get(name + variant)
    spec = c.specs.get(name)
    if f is None and spec is not None:
        if variant:
            drop_idle_variants(c, now)
        f = Function(name + variant, spec, variant, c.apps[app(name)][0], keep_alive_of(c, spec))
        f.replicas = replicas_of(c, spec)
        govern(c, f, spec)
        refill(c, f, [])
        c.functions[f.name] = f
    return f


def pools(c: State, name: str) -> list[Function]:
    """The function of that name, or every parameterisation of the class."""
    return [f for f in c.functions.values() if f.spec.name == name]


def drop_idle_variants(c: State, now: float) -> None:
    """Forgets the parameterisations that have had no call, instance or timer for `VARIANT_IDLE_S`.

    Done as new ones come, so that there is at most what a day brings, but not more often than every `LOOK_S`.
    """
    if now < c.look_s:
        return
    c.look_s = now + LOOK_S
    called = {call.function.name for call in c.calls.values()}
    for f in [f for f in c.functions.values() if f.variant and f.name not in called]:
        waits = f.blocked or f.short or f.held_s < inf or f.prewarm_s >= now
        if not f.instances and not waits and now >= max(f.last_arrival_s, f.last_end_s) + VARIANT_IDLE_S:
            del c.functions[f.name]
            _forget(c, f)


def _forget(c: State, f: Function) -> None:
    """A pool is gone, and with it what policies know of it."""
    f.keep_alive.forgotten(f)
    if c.keep_alives[""] is not f.keep_alive:  # it saw the evictions
        c.keep_alives[""].forgotten(f)


def keep_alive_of(c: State, spec: FunctionSpec) -> KeepAlive:
    """What a function was switched to, or else declared with. Functions with policies of one text share one policy."""
    text = c.chosen.get(spec.name, spec.keep_alive)
    if text not in c.keep_alives:
        c.keep_alives[text] = c._make("keep-alive", text)
    return c.keep_alives[text]


def verify(spec: FunctionSpec) -> None:
    """Raises `UsageError` on what no cloud could carry out: to be asked before a deployment is logged."""
    make("keep-alive", spec.keep_alive or None)
    verify_replicas(spec)
    verify_control(spec)
    if spec.schedule is not None:
        calendar.next_time(spec.schedule, 0.0)
    if spec.concurrency < 1 or (spec.batching is not None and spec.batching.max_batch_size < 1):
        raise UsageError(f"An instance of {spec.name!r} would never take a call.", "Let it take at least 1 at once.")
    if not (0 <= spec.cpu < inf and spec.memory_bytes >= 0 and spec.timeout_s > 0 and spec.startup_timeout_s > 0):
        raise UsageError(f"{spec.name!r} has a negative size or no time.", "Give it CPU, memory and time to run.")


def deployed(c: State, event: e.Deployed, now: float) -> None:
    names = tuple(spec.name for spec in event.functions)
    _, before, _ = c.apps.get(event.app, (0, (), False))
    c.apps[event.app] = (event.version, names, event.ephemeral)
    _remove_functions(c, [name for name in before if name not in names], now)
    for spec in event.functions:
        c.specs[spec.name] = spec
        for f in pools(c, spec.name):
            _replace(c, f, spec, event.version, now)
        c.tree.drop(spec.name, now, c.out)
        for f in pools(c, spec.name):
            if f.queued:
                serve(c, f, now)
        stand_ready(c, spec, now)
        c.due.pop(spec.name, None)
        if spec.schedule is not None:
            set_due(c, spec.name, calendar.next_time(spec.schedule, now))
    if not c.ticks:
        start_ticking(c, now)
    released(c, now)


def _replace(c: State, f: Function, spec: FunctionSpec, version: int, now: float) -> None:
    """A new version: idle instances go at once, busy ones after their calls, waiting calls get new instances.

    If the function says what it can bear, they go on until its task control lets them go.
    """
    govern(c, f, spec)
    for instance in [i for i in f.instances.values() if not i.load]:
        if f.control is None or not instance.ready:
            stop(c, instance, REPLACED, now)
    memory_bytes, cpu = f.spec.memory_bytes, f.cpu
    f.replicas = replicas_of(c, spec)
    f.become(spec, version, keep_alive_of(c, spec))
    f.failures = 0
    for instance in list(f.instances.values()):  # what they hold is accounted at the new size from here on
        instance.machine.memory_used += spec.memory_bytes - memory_bytes
        if instance.load or not instance.ready:
            instance.machine.cpu_used += f.cpu - cpu
        review(c, instance, REPLACED, now)


def stand_ready(c: State, spec: FunctionSpec, now: float) -> None:
    """What is to be there before the first call."""
    if spec.kind == "function" or spec.min_instances:
        f = pool(c, spec.name, "", now)
        assert f is not None
        c.tree.prepare(f, now, c.out)
    for f in pools(c, spec.name):
        ensure(c, f, now)


def removed(c: State, event: e.Removed, now: float) -> None:
    remove(c, event.app, now)
    released(c, now)


def remove(c: State, name: str, now: float) -> None:
    """An app and everything of it goes away."""
    if name in c.apps:
        _, names, _ = c.apps.pop(name)
        _remove_functions(c, list(names), now)


def _remove_functions(c: State, names: list[str], now: float) -> None:
    for name in names:
        for table in (c.specs, c.chosen, c.due):
            table.pop(name, None)
        for f in pools(c, name):
            del c.functions[f.name]
            for call in [call for call in c.calls.values() if call.function is f]:
                resolve(c, call, CANCELLED, f"{name!r} was stopped.", b"", now)
            for instance in list(f.instances.values()):
                stop(c, instance, "its app was stopped", now)
            _forget(c, f)
        c.tree.drop(name, now, c.out)


def set_due(c: State, name: str, at: float) -> None:
    """The clock calls function `name` at that time."""
    c.due[name] = at
    version = c.apps[app(name)][0]
    c.out.append(e.SetTimer(at, (f"schedule/{version}", name)))


def start_ticking(c: State, now: float) -> None:
    """The queueing policy's ticks begin, and those of the policy before it end."""
    c.ticks += 1
    if c.queueing.tick_s > 0.0:
        c.out.append(e.SetTimer(now + c.queueing.tick_s, ("tick", c.ticks)))
