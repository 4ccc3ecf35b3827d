"""Events of calls: they are submitted, answered, handed on, tried again, cancelled."""

from __future__ import annotations

from nubes.functions import events as e
from nubes.functions.answers import follow, forget, hang_up, heir, known, leave, resolve
from nubes.functions.deployments import pool, remove
from nubes.functions.events import CANCELLED, FAILED, SUCCEEDED
from nubes.functions.hedging import late, places, recall, retract
from nubes.functions.instances import stop
from nubes.functions.queues import unqueue
from nubes.functions.serving import after_stop, arrived, copy_to, freed, offer, released
from nubes.functions.state import RETRIES, WAITS, Call, State

SMOOTHING = 0.2  # weight of the newest sample in moving averages


def submitted(c: State, event: e.Submitted, now: float) -> None:
    f = c.functions.get(event.function + event.variant) or pool(c, event.function, event.variant, now)
    if f is None:
        c.out.append(e.Resolve(event.call, FAILED, f"No function {event.function!r} is deployed."))
        return
    if event.key and known(c, event):
        return
    first = c.calls.get(c.keys.get((f.name, event.key), -1)) if event.key else None
    if first is not None:
        follow(c, Call(event, f, now), first)
        return
    if f.queued >= f.spec.max_queued:
        full = (
            f"The queue of {event.function!r} is full ({f.queued} calls wait); nothing was accepted, try again later."
        )
        c.out.append(e.Resolve(event.call, FAILED, "overloaded: " + full))
        return
    call = Call(event, f, now)
    if event.key:
        c.keys[f.name, event.key] = call.id
    c.calls[call.id] = call
    arrived(c, f, call, now)


def finished(c: State, event: e.Finished, now: float) -> None:
    instance = c.instances.get(event.instance)
    if instance is None or (since := instance.calls.pop(event.call, None)) is None:
        return  # its instance was given up before the answer came
    f = instance.function
    call = c.calls.get(event.call)
    if f.replicas is not None:
        ok = event.ok or call is None  # who was called back did nothing wrong
        f.replicas.ended(instance, event.call, ok, now - since, event.exec_s, now)
    instance.load -= 1
    f.last_end_s = now
    f.exec_s += (event.exec_s - f.exec_s) * (SMOOTHING if f.exec_s else 1.0)
    if c.queueing.limits:
        c.queueing.finished(f, event.ok, event.exec_s, event.backpressure, now)
    if call is None or (call.copies and _copy_ended(c, call, event, now)):
        freed(c, instance, now)
    elif event.ok and call.route:
        freed(c, instance, now)
        _forward(c, call, event, now)
    elif not event.ok and call.attempt <= f.spec.retries.max_retries:
        retry(c, call, now)
        freed(c, instance, now)
    else:
        if event.ok and f.replicas is not None and f.replicas.hedging is not None:
            f.replicas.hedging.answered(now - call.started_s, now)
        following = heir(c, call) if call.also and not event.keep else None  # the log is not told of the answer
        resolve(c, call, SUCCEEDED if event.ok else FAILED, "", event.output, now)
        freed(c, instance, now)
        if following is not None:
            arrived(c, following.function, following, now)


def _copy_ended(c: State, call: Call, event: e.Finished, now: float) -> bool:
    """One of several instances is done with a call; returns whether it runs on elsewhere, as this one failed."""
    if event.ok:
        recall(c, call, event.instance)
        return False
    return retract(call, event.instance)


def hedge_timer(c: State, id: int, now: float) -> None:
    """A call is late, unless it was answered meanwhile: another instance gets a copy, if one may."""
    call = c.calls.get(id)
    instance = late(c, call, id, now)
    if instance is not None and call is not None:
        copy_to(c, instance, call, now)


def _forward(c: State, call: Call, event: e.Finished, now: float) -> None:
    """One step of a call's route is done: its output is the input of the next."""
    following = pool(c, call.route[0], "", now)
    if following is None:
        resolve(c, call, FAILED, f"No function {call.route[0]!r} is deployed.", b"", now)
        return
    call.route = call.route[1:]
    call.hop = True
    call.function = following
    call.method = ""
    call.input = event.output
    call.near = event.near
    call.attempt = 1
    call.arrived_s = now
    arrived(c, following, call, now)


def retry(c: State, call: Call, now: float) -> None:
    """The call is to be tried again, after a while."""
    call.instance = RETRIES
    delay = call.function.spec.retries.delay_s(call.attempt)
    call.attempt += 1
    c.out.append(e.SetTimer(now + delay, ("retry", call.id)))


def retry_timer(c: State, id: int, now: float) -> None:
    call = c.calls.get(id)
    if call is not None and call.instance == RETRIES:
        offer(c, call.function, call, now)


def cancelled(c: State, event: e.Cancelled, now: float) -> None:
    call = c.calls.get(event.call)
    if call is not None:
        first = c.aliases.get(call.id, -1)
        _withdraw(c, [call], event.terminate, now)
        if event.refused:
            forget(c, call, first)
    elif event.call in c.aliases:
        leave(c, event.call)


def client_gone(c: State, event: e.ClientGone, now: float) -> None:
    _withdraw(c, hang_up(c, event.owner), False, now)
    for app in event.apps:
        remove(c, app, now)
    released(c, now)


def _withdraw(c: State, calls: list[Call], terminate: bool, now: float) -> None:
    """Ends calls that nobody wants any more, wherever they are; durable ones that waited for their answers begin."""
    following = [one for call in calls if (one := heir(c, call)) is not None]
    functions = {call.function.name: call.function for call in calls}
    waiting = {call.id for call in calls if call.instance == WAITS}
    for f in functions.values():
        unqueue(f, waiting)
    for call in calls:
        resolve(c, call, CANCELLED, "The call was cancelled.", b"", now)
    for call in calls:
        for id in places(call):
            instance = c.instances.get(id)
            if instance is None:
                continue
            if instance.load == 1 or terminate or call.function.room == 1:
                stop(c, instance, "its call was cancelled", now, kill=True)
            else:
                c.out.append(e.Interrupt(instance.id, call.id))
    for f in functions.values():
        after_stop(c, f, now)
    for call in following:
        arrived(c, call.function, call, now)
