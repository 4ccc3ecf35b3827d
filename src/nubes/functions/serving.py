"""Calls and instances find each other: at once, when an instance comes free, or when a new one is ready."""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf

from nubes.functions.answers import resolve
from nubes.functions.choosing import ahead, batch_of, covered, open_for, used
from nubes.functions.events import COLD, DELAYED, FAILED, WARM, Dispatch, SetTimer
from nubes.functions.hedging import look_later, may_copy, others
from nubes.functions.instances import REPLACED, SHORT, fall_idle, fits, going, start, stop, wait_short, wake, wanted
from nubes.functions.queues import enqueue, head, take
from nubes.functions.replicas import Replicas
from nubes.functions.state import Call, Function, Instance, Machine, State
from nubes.kernel.units import show_bytes

START_FAILURES = 3  # starts in a row that may die before the calls that wait get an error


def arrived(c: State, f: Function, call: Call, now: float) -> None:
    """A call comes to `f`: a free instance takes it, or it waits."""
    f.keep_alive.arrived(f, now)
    f.arrivals += 1
    f.last_arrival_s = now
    f.prewarm += 1
    offer(c, f, call, now)


def offer(c: State, f: Function, call: Call, now: float) -> None:
    """A free instance takes a call that comes, or comes again; or it waits."""
    free = f.open and covered(f) and f.spec.batching is None and not c.queueing.limits
    if free and not (c.blocked and _passes(c, f, call, now)):
        instance = open_for(c, f, call, now)
        if instance is not None:
            del f.open[instance.id]
            dispatch(c, instance, (call,), WARM, now)
            return
    enqueue(c, f, call)
    if f.open or not f.blocked:  # else it waits for room with the others of `f`
        serve(c, f, now)


def serve(c: State, f: Function, now: float) -> None:
    """Gives waiting calls the instances that are open, then asks the policy how many more to start."""
    spec, queueing = f.spec, c.queueing
    short = False  # all open instances are on machines without CPU
    while f.queued and f.open:
        first = head(f)
        if c.blocked and _passes(c, f, first, now):
            block(c, f, now)
            return
        own = covered(f)  # calls wait for starts of their own: only an instance that is new may take one
        if own and all(used(i, now) for i in f.open.values()):
            return
        instance = open_for(c, f, first, now, now if own else -inf)
        if instance is None:
            if len(c.machines) == 1:
                block(c, f, now)
                return
            short = True  # one may be started on another machine
            break
        if queueing.limits and not _admitted(c, f, now):
            return
        if spec.batching is None:
            calls: tuple[Call, ...] = batch_of(f, ahead(c, f)) if f.queued > 1 else (take(f),)
        else:
            size = spec.batching.max_batch_size
            ripe = first.arrived_s + spec.batching.wait_s
            if f.queued < size and now < ripe:
                _hold(c, f, ripe)
                return
            calls = batch_of(f, size)
        new = not instance.uses and first.arrived_s <= f.last_start_s
        del f.open[instance.id]
        dispatch(c, instance, calls, WARM if first.arrived_s == now else COLD if new else DELAYED, now)
    if not f.queued:
        return
    if queueing.limits and not _admitted(c, f, now):
        return
    if c.blocked and _passes(c, f, head(f), now):
        block(c, f, now)
        return
    count = f.keep_alive.start(f, now)
    if queueing.limits:  # calls that are held need no instance yet
        count = min(count, queueing.allowance(f, now))
    if count <= 0 and (not f.instances or (short and not f.busy and not f.starting)):
        count = 1
    if spec.max_instances and len(f.instances) >= spec.max_instances:
        count = 0
    if (count > 0 and not start(c, f, count, now) and not f.starting) or short:
        block(c, f, now)


def _passes(c: State, f: Function, call: Call, now: float) -> bool:
    """Whether a call of `f` would go before the first in line for capacity, which has been passed for long enough."""
    order, _, first = c.blocked[0]
    if c.queueing.patience_s == inf or order == SHORT or first is f or not first.queued:
        return False
    return head(first).arrived_s < now - c.queueing.patience_s and order < c.queueing.order(f, call)


def _admitted(c: State, f: Function, now: float) -> bool:
    at = c.queueing.admit(f, now)
    if at > now and at != inf:
        _hold(c, f, at)
    return at <= now


def _hold(c: State, f: Function, at: float) -> None:
    if at < f.held_s:
        f.held_s = at
        c.out.append(SetTimer(at, ("serve", f.name)))


def dispatch(
    c: State, instance: Instance, calls: tuple[Call, ...], how: int, now: float, copy: bool = False
) -> None:  # fmt: skip
    """Hands calls to an instance that was taken out of the open ones; it is put back if it has room left.

    `copy`: another instance runs them already.
    """
    f, id = instance.function, instance.id
    spec, count = f.spec, len(calls)
    if f.replicas is not None:
        f.replicas.of(instance)
    if not instance.load:
        f.idle -= 1
        f.busy += 1
        instance.machine.cpu_used += f.cpu
    first = calls[0]
    for call in calls:
        if copy:
            call.copies += (id,)
        else:
            call.instance = id
            call.started_s = now
        instance.calls[call.id] = now
    instance.load += count
    if instance.load < f.room:
        f.open[id] = instance
    instance.uses += count
    instance.last_used_s = now
    deadline = now + spec.timeout_s
    instance.expire_s = inf
    if deadline < instance.wake_s:
        wake(c, instance, deadline)
    f.keep_alive.dispatched(instance, how, 0.0 if copy else now - first.arrived_s, now)
    if c.queueing.limits:
        for _ in calls:
            c.queueing.issued(f, now)
    batch = spec.batching is not None
    if count == 1:
        inputs: tuple[bytes, ...] = (first.input,) if first.keep else ()
        c.out.append(Dispatch(id, (first.id,), how, first.method, first.hop, inputs, batch, copy))
    else:
        ids = tuple(call.id for call in calls)
        inputs = tuple(call.input for call in calls) if any(call.keep for call in calls) else ()
        c.out.append(Dispatch(id, ids, how, first.method, first.hop, inputs, batch))
    if f.replicas is not None:
        _replicated(c, f.replicas, instance, calls, now, copy)
    if spec.buffer_instances:
        ensure(c, f, now)


def _replicated(
    c: State, replicas: Replicas, instance: Instance, calls: tuple[Call, ...], now: float, copy: bool
) -> None:  # fmt: skip
    """What balancing and hedging make of calls that were just dispatched."""
    f, hedging = instance.function, replicas.hedging
    for call in calls:
        replicas.sent(instance, call.id, now)
        if copy:
            replicas.copies += 1
        elif hedging is not None:
            hedging.sent(now)
    if len(calls) > 1 or not may_copy(calls[0]):  # those that were handed ahead are not late while they wait there
        return
    (call,) = calls
    if not copy and (shadow := replicas.shadow(others(c, f, call), now)) is not None:
        replicas.shadows[call.id] = shadow.id
        copy_to(c, shadow, call, now)
    if hedging is not None and replicas.shadows.get(call.id) != instance.id:
        look_later(c, replicas, hedging, call, now)


def copy_to(c: State, instance: Instance, call: Call, now: float) -> None:
    """An instance that has room runs a call, too."""
    del instance.function.open[instance.id]
    dispatch(c, instance, (call,), WARM, now, copy=True)


def freed(c: State, instance: Instance, now: float) -> None:
    """An instance has room: the next call, or its keep-alive window."""
    f, spec = instance.function, instance.function.spec
    if not instance.load and instance.uses:
        f.busy -= 1
        f.idle += 1
        instance.machine.cpu_used -= f.cpu
        if spec.single_use or not instance.stays():
            stop(c, instance, _over(instance), now)
            after_stop(c, f, now)
            return
    if instance.id not in f.open and instance.takes():
        f.open[instance.id] = instance
    if f.queued:
        if instance.uses and _gives_way(c, f, instance.machine):  # a new instance is for the calls it was started for
            block(c, f, now)
        else:
            serve(c, f, now)
    if c.blocked:
        released(c, now)
    if not instance.load and not instance.stopping:
        fall_idle(c, instance, now)


def _over(instance: Instance) -> str:
    """Why an instance ends after a call."""
    f = instance.function
    if f.spec.single_use:
        return "it was for one call"
    return REPLACED if instance.version != f.version else "its machine is to go, or to shrink"


def _gives_way(c: State, f: Function, m: Machine) -> bool:
    """Whether an instance of `f` that came free, and whose own calls wait, is offered to all who wait for room.

    It is if CPU is short, or if the first in line has no instance at all: then turns are by order. Who has instances
    goes on with them; taking one of those that `f` needs only has `f` start it again, and wait for room meanwhile.
    """
    if not c.blocked:
        return False
    order, _, first = c.blocked[0]
    return order != SHORT and (not first.instances or m.cpu_used + f.cpu + first.cpu > m.cpu)


def after_stop(c: State, f: Function, now: float) -> None:
    """An instance of `f` is gone: its calls, those that it was to be ahead of, and others that wait for room."""
    if f.queued:
        serve(c, f, now)
    ensure(c, f, now)
    released(c, now)


def ensure(c: State, f: Function, now: float) -> None:
    """Keeps the instances that the function asked to have ahead of its calls."""
    missing = wanted(f) - len(f.instances) + going(c, f)
    if missing <= 0 or f.failures >= START_FAILURES or not fits(c, f):
        return
    if start(c, f, missing, now, ahead=True) < missing:
        wait_short(c, f)


def block(c: State, f: Function, now: float) -> None:
    """The calls of `f` wait until CPU or memory comes free; if there will never be enough, they get to know."""
    if not fits(c, f):
        needs = f"{f.spec.cpu:g} CPU and {show_bytes(f.spec.memory_bytes)} of memory"
        largest = max(c.machines.values(), key=lambda m: (m.cpu, m.memory_bytes))
        all_there_is = f"{largest.cpu:g} CPU and {show_bytes(largest.memory_bytes)}"
        where = "all there is are" if len(c.machines) == 1 else f"the largest of {len(c.machines)} machines has"
        fail_waiting(c, f, f"{f.spec.name!r} needs {needs}, but {where} {all_there_is}.", b"", now)
    elif not f.blocked:
        f.blocked = True
        c.sequence += 1
        heappush(c.blocked, (c.queueing.order(f, head(f)), c.sequence, f))


def released(c: State, now: float) -> None:
    """Something came free: the waiting functions in the queueing policy's order, until one does not fit."""
    while c.blocked:
        order, _, f = heappop(c.blocked)
        ahead = order == SHORT
        if ahead:
            f.short = False
        else:
            f.blocked = False
        if c.functions.get(f.name) is not f:
            continue
        if ahead:
            ensure(c, f, now)
        elif f.queued:
            if c.blocked and _passes(c, f, head(f), now):  # its first call was cancelled: back in line
                block(c, f, now)
                continue
            serve(c, f, now)
        if f.short if ahead else f.blocked:
            return


def line_up(c: State, now: float) -> None:
    """All functions with calls that wait, or instances to have, wait for room, in the queueing policy's order."""
    c.blocked.clear()
    for f in c.functions.values():
        f.blocked = f.short = False
        if f.queued:
            block(c, f, now)
        wait_short(c, f)


def fail_waiting(c: State, f: Function, reason: str, error: bytes, now: float) -> None:
    """No instance of `f` can be had: the calls that wait for one get to know why."""
    while f.queued:
        resolve(c, take(f), FAILED, reason, error, now)
