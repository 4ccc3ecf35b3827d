"""Which instance takes the next call of a function, and how many calls it gets at once."""

from __future__ import annotations

from math import inf

from nubes.functions.queues import head, take
from nubes.functions.state import Call, Function, Instance, State

MOST_AHEAD = 16  # calls that an instance may be handed at once, to run one after the other


def open_for(c: State, f: Function, call: Call, now: float, new_s: float = -inf) -> Instance | None:
    """The instance that takes `call`: the last in is the first out, and nearest to its input if there are machines.

    A balancing policy chooses in place of this if there is one. None if all that have room are idle on machines whose
    CPU is in use. `new_s`: only one that is new at this time.
    """
    if len(c.machines) == 1 and new_s == -inf and f.replicas is None:
        instance = next(reversed(f.open.values()))
        return instance if instance.load or instance.machine.cpu_used + f.cpu <= instance.machine.cpu else None
    able = [i for i in reversed(f.open.values()) if i.load or i.machine.cpu_used + f.cpu <= i.machine.cpu]
    if new_s > -inf:
        able = [i for i in able if not used(i, new_s)]
    if f.replicas is not None and f.replicas.balancing is not None:
        return f.replicas.pick(able, now) if able else None
    if call.near and able:
        there = dict(call.near)
        return max(able, key=lambda i: there.get(i.machine.id, 0))
    return able[0] if able else None


def used(instance: Instance, now: float) -> bool:
    """Whether it took its first calls at an earlier time."""
    return instance.uses > 0 and instance.ready_s < now


def covered(f: Function) -> bool:
    """Whether no call of `f` may take an instance that was used before: none waits, or each for a start of its own."""
    if not f.queued or not f.keep_alive.binds:
        return not f.queued
    return f.queued <= f.starting * (f.spec.batching.max_batch_size if f.spec.batching else f.room)


def batch_of(f: Function, size: int) -> tuple[Call, ...]:
    """Up to `size` waiting calls that can run as one: of one method, and with inputs of one kind."""
    first = take(f)
    taken = [first]
    while f.queued and len(taken) < size:
        following = head(f)
        if following.method != first.method or following.hop != first.hop:
            break
        taken.append(take(f))
    return tuple(taken)


def ahead(c: State, f: Function) -> int:
    """How many waiting calls an instance gets at once, to run one after the other: more than one if they are tiny."""
    if f.room > 1 or f.spec.single_use or c.queueing.limits or f.keep_alive.binds or not f.exec_s:
        return 1
    share = f.queued // (f.busy + f.idle)
    return max(1, min(share, MOST_AHEAD, int(c.queueing.ahead_s / f.exec_s)))
