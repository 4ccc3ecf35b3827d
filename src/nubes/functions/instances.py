"""Instances start where there is room, fall idle, and stop; what they hold of CPU and memory is accounted here."""

from __future__ import annotations

from heapq import heappush
from math import inf

import msgspec

from nubes.functions.answers import resolve
from nubes.functions.events import FAILED, Drained, SetTimer, StopInstance
from nubes.functions.hedging import places, retract
from nubes.functions.queues import enqueue, head
from nubes.functions.state import Function, Instance, Machine, State

LOSSES = 2  # instances that may be lost under a durable call before it gets an error
REPLACED, MOVED = "a newer version is deployed", "its machine is to go"  # why instances end that did nothing wrong
SHORT = (inf, inf, inf)  # the place in the line of one that waits for instances ahead of calls: behind all calls


def fits(c: State, f: Function) -> bool:
    """Whether one instance of `f` would fit on a machine if it were alone there. If there is none, one may join yet."""
    machines = [m for m in c.machines.values() if not m.draining]
    return not machines or any(f.cpu <= m.cpu and f.spec.memory_bytes <= m.memory_bytes for m in machines)


def start(c: State, f: Function, count: int, now: float, ahead: bool = False) -> int:
    """Starts up to `count` instances, `ahead` of calls or for them, as far as there is room; returns how many."""
    spec = f.spec
    started = 0
    while started < count:
        if spec.max_instances and len(f.instances) >= spec.max_instances:
            break
        machine = _place(c, f, ahead, now)
        if machine is None:
            break
        c.instance_ids += 1
        instance = Instance(c.instance_ids, f, machine, now)
        c.instances[instance.id] = f.instances[instance.id] = machine.instances[instance.id] = instance
        f.starting += 1
        f.last_start_s = now
        unsettle(c, f)
        machine.cpu_used += f.cpu
        machine.memory_used += spec.memory_bytes
        machine.count(f.request, 1)
        wake(c, instance, now + spec.startup_timeout_s)
        c.tree.start(instance, now, c.out)
        started += 1
    return started


def _place(c: State, f: Function, ahead: bool, now: float) -> Machine | None:
    """A machine with room for an instance of `f`, made there if need be; the placement policy chooses among several."""
    ready = [m for m in c.machines.values() if m.cpu_used + f.cpu <= m.cpu and not m.draining]
    if len(c.machines) == 1:
        return ready[0] if ready and _make_room(c, ready[0], f, ahead, now) else None
    request = f.request
    if f.queued:
        near = head(f).near
        request = msgspec.structs.replace(request, near=near) if near else request
    roomy = [m for m in ready if m.room(request)]
    able = roomy or [
        m for m in ready if m.memory_used + f.spec.memory_bytes - _evictable(f, m, ahead) <= m.memory_bytes
    ]
    chosen = c.placement.choose(request, able, now) if able else None
    if chosen is None:
        return None
    machine = c.machines[chosen.id]
    return machine if _make_room(c, machine, f, ahead, now) else None


def _evictable(f: Function, m: Machine, ahead: bool) -> int:
    """Bytes that eviction could free on a machine for an instance of `f`."""
    idle = (i.function for i in m.instances.values() if i.ready and not i.load)
    return sum(g.spec.memory_bytes for g in idle if g is not f and not (ahead and g.ahead))


def _make_room(c: State, m: Machine, f: Function, ahead: bool, now: float) -> bool:
    """Evicts a machine's idle instances, the least worth first, until one of `f` fits. False if it cannot.

    What functions asked to have ahead of calls goes last, and only for a call; it comes back when there is room. Last
    of all goes what a function said that it can hardly bear to lose.
    """
    need = m.memory_used + f.spec.memory_bytes - m.memory_bytes
    policy = c.keep_alives[""]
    while need > 0:
        # Of one function's idle instances the longest unused goes first: those are the candidates.
        spare: list[Instance] = []
        asked_for: list[Instance] = []
        governed: list[Instance] = []
        for g in _with_idle(c):
            oldest = next((i for i in g.open.values() if not i.load and i.machine is m), None) if g is not f else None
            if oldest is not None:
                kept = g.ahead and beyond(g) <= 0
                (spare if not kept else asked_for if g.control is None else governed).append(oldest)
        idle = spare or ([] if ahead else asked_for or governed)
        if not idle:
            return False
        priority, _, victim = min([(policy.priority(i, now), i.id, i) for i in idle])
        policy.evicted(victim, priority)
        need -= victim.function.spec.memory_bytes
        stop(c, victim, "memory was needed", now)
        if not spare:
            wait_short(c, victim.function)
    return True


def _with_idle(c: State) -> list[Function]:
    """The functions with idle instances, found among whatever there is less of: this is asked at every turn."""
    if len(c.functions) < len(c.instances):
        return [f for f in c.functions.values() if f.idle]
    return list({i.function.name: i.function for i in c.instances.values() if i.ready and not i.load}.values())


def wanted(f: Function) -> int:
    """How many instances `f` asked to have ahead of its calls."""
    want = f.spec.min_instances
    if f.busy and f.spec.buffer_instances:
        want = max(want, f.busy + f.spec.buffer_instances)
    return min(want, f.spec.max_instances) if f.spec.max_instances else want


def going(c: State, f: Function) -> int:
    """How many instances of `f` are to go, so that others take their places first.

    For what goes when task control lets it, one more than was asked for is started: else who can spare none would keep
    what there is.
    """
    if f.control is None:
        return sum(i.machine.draining for i in f.instances.values()) if c.draining else 0
    old = any(i.version != f.version and not i.leaving and not i.machine.draining for i in f.instances.values())
    return sum(i.leaving or i.machine.draining for i in f.instances.values()) + old


def beyond(f: Function) -> int:
    """How many instances `f` has beyond those that it asked to have; of a function with task control, that are up."""
    have = len(f.instances) if f.control is None else sum(i.ready and not i.leaving for i in f.instances.values())
    return have - wanted(f)


def unsettle(c: State, f: Function) -> None:
    """Something changed that the task control of `f` has to hear of, if it has one."""
    if f.control is not None:
        c.unsettled[f.name] = f


def wait_short(c: State, f: Function) -> None:
    """`f` gets the instances that it asked to have once all calls have theirs and there is room."""
    if not f.short:
        f.short = True
        c.sequence += 1
        heappush(c.blocked, (SHORT, c.sequence, f))


def wake(c: State, instance: Instance, at: float) -> None:
    """Sets the one timer that an instance has."""
    instance.wake_s = at
    c.out.append(SetTimer(at, ("instance", instance.id)))


def fall_idle(c: State, instance: Instance, now: float) -> None:
    """Asks the keep-alive policy what becomes of an instance without calls."""
    f = instance.function
    window = f.keep_alive.window(f, now)
    keep_s = window.keep_s
    if window.prewarm_s > 0.0 and instance.uses:
        if beyond(f) > 0:
            f.prewarm_s = now + window.prewarm_s
            c.out.append(SetTimer(f.prewarm_s, (f"prewarm/{f.prewarm}", f.name)))
            stop(c, instance, "its function is not expected soon", now)
            return
        keep_s = 0.0
    instance.expire_s = now + keep_s
    if instance.expire_s < instance.wake_s:
        wake(c, instance, instance.expire_s)


def stop(c: State, instance: Instance, reason: str, now: float, kill: bool = False) -> None:
    """Takes an instance out of the state and has its process ended; calls it still runs go back to the queue."""
    drop(c, instance, now)
    c.out.append(StopInstance(instance.id, reason, kill))
    drained(c, instance.machine)
    requeue(c, instance, reason, now, counts=False)


def review(c: State, instance: Instance, reason: str, now: float) -> None:
    """Whether an instance may be given calls has perhaps changed: it opens, closes, or ends if it has none any more."""
    f = instance.function
    if instance.takes():
        f.open.setdefault(instance.id, instance)
        return
    f.open.pop(instance.id, None)
    if not instance.load and not instance.stays():
        stop(c, instance, reason, now)


def drained(c: State, m: Machine) -> None:
    """Says so when nothing is left on a machine that is to go."""
    if m.draining and not m.instances:
        c.out.append(Drained(m.id))


def drop(c: State, instance: Instance, now: float) -> None:
    """Takes an instance out of the state, but not its calls."""
    f = instance.function
    instance.stopping = True
    del c.instances[instance.id]
    del f.instances[instance.id]
    f.open.pop(instance.id, None)
    unsettle(c, f)
    m = instance.machine
    del m.instances[instance.id]
    m.memory_used -= f.spec.memory_bytes
    m.count(f.request, -1)
    if not instance.ready:
        f.starting -= 1
        m.cpu_used -= f.cpu
    elif instance.load:
        f.busy -= 1
        m.cpu_used -= f.cpu
    else:
        f.idle -= 1
    if f.replicas is not None:
        f.replicas.left(instance)
    if c.queueing.limits:
        for started in instance.calls.values():
            c.queueing.finished(f, False, now - started, "", now)


def requeue(
    c: State, instance: Instance, reason: str, now: float, counts: bool = True, guilty: bool = True
) -> None:  # fmt: skip
    """What becomes of the calls of an instance that is gone; `counts`: as an attempt of those that had begun.

    A durable call that lost too many instances gets an error, as it may be what ends them; not if it is not `guilty`.
    """
    calls = [c.calls[id] for id in instance.calls if id in c.calls and instance.id in places(c.calls[id])]
    first = calls[0] if calls else None
    calls = [call for call in calls if not retract(call, instance.id)]  # others run on elsewhere
    for call in reversed(calls):
        began = counts and (call is first or not one_by_one(instance.function))
        retries = call.function.spec.retries.max_retries
        call.losses += began and (guilty or not call.keep)
        if call.losses > (max(LOSSES, retries) if call.keep else retries):
            resolve(c, call, FAILED, f"The instance that ran the call was lost: {reason}.", b"", now)
        else:
            call.attempt += began
            enqueue(c, call.function, call, front=True)


def one_by_one(f: Function) -> bool:
    """Whether an instance's calls run one after the other, in the order in which it got them."""
    return f.room == 1 and f.spec.batching is None
