"""Events of instances: they get ready or are lost, their calls run out of time, their keep-alive ends."""

from __future__ import annotations

from math import inf

from nubes.functions import events as e
from nubes.functions.answers import resolve
from nubes.functions.calls import SMOOTHING, retry
from nubes.functions.events import TIMED_OUT
from nubes.functions.hedging import retract
from nubes.functions.instances import beyond, drained, drop, one_by_one, requeue, start, stop, unsettle, wake
from nubes.functions.serving import START_FAILURES, after_stop, ensure, fail_waiting, freed, released
from nubes.functions.state import Instance, State

BUFFER_S = 60.0  # how often to look whether an instance that is there ahead of calls still has to be


def ready(c: State, event: e.InstanceReady, now: float) -> None:
    instance = c.instances.get(event.instance)
    if instance is None or instance.ready:
        return
    f = instance.function
    instance.ready = True
    instance.ready_s = instance.last_used_s = now
    took = now - instance.started_s
    f.cold_start_s += (took - f.cold_start_s) * (SMOOTHING if f.cold_start_s else 1.0)
    f.starting -= 1
    f.idle += 1
    unsettle(c, f)
    instance.machine.cpu_used -= f.cpu
    failed, f.failures = f.failures, 0
    freed(c, instance, now)
    if failed:
        ensure(c, f, now)


def lost(c: State, event: e.InstanceLost, now: float) -> None:
    instance = c.instances.get(event.instance)
    if instance is not None:
        drop(c, instance, now)
        drained(c, instance.machine)
        _gone(c, instance, event.reason, event.error, now)


def _gone(c: State, instance: Instance, reason: str, error: bytes, now: float) -> None:
    """An instance ended that should not have; `error` is what its start raised."""
    f = instance.function
    if not instance.ready:
        f.failures += 1
        if error or f.failures >= START_FAILURES:
            fail_waiting(c, f, "" if error else f"No instance of {f.name!r} would start: {reason}.", error, now)
            released(c, now)
            return
    requeue(c, instance, reason, now)
    after_stop(c, f, now)


def instance_timer(c: State, id: int, now: float) -> None:
    """One timer serves start-up, call timeouts and keep-alive: set to the earliest, and set anew when too early."""
    instance = c.instances.get(id)
    if instance is None or now < instance.wake_s:
        return
    instance.wake_s = inf
    f = instance.function
    if not instance.ready:
        reason = f"it was not ready within {f.spec.startup_timeout_s:g} s"
        stop(c, instance, reason, now, kill=True)
        _gone(c, instance, reason, b"", now)
    elif instance.calls:
        deadline = min(instance.calls.values()) + f.spec.timeout_s
        if now >= deadline:
            _timed_out(c, instance, now)
        else:
            wake(c, instance, deadline)
    elif now < instance.expire_s:
        if instance.expire_s < inf:
            wake(c, instance, instance.expire_s)
    elif beyond(f) > 0:
        stop(c, instance, "its keep-alive ran out", now)
        after_stop(c, f, now)
    elif len(f.instances) > f.spec.min_instances:  # it is there while the function is busy
        instance.expire_s = now + BUFFER_S
        wake(c, instance, instance.expire_s)
    else:
        instance.expire_s = inf


def _timed_out(c: State, instance: Instance, now: float) -> None:
    f = instance.function
    running = list(instance.calls.items())
    for id, started in running[:1] if one_by_one(f) else running:
        call = c.calls.get(id)
        if call is None or now < started + f.spec.timeout_s or retract(call, instance.id):
            continue
        if call.attempt <= f.spec.retries.max_retries:
            retry(c, call, now)
        else:
            reason = f"The call ran longer than its timeout of {f.spec.timeout_s:g} s."
            resolve(c, call, TIMED_OUT, reason, b"", now)
    stop(c, instance, "a call ran longer than its timeout", now, kill=True)
    after_stop(c, f, now)


def prewarm_timer(c: State, name: str, number: int, now: float) -> None:
    """A function without instances is expected soon, unless a call came since the timer was set."""
    f = c.functions.get(name)
    if f is not None and f.prewarm == number and not f.instances:
        start(c, f, 1, now, ahead=True)
