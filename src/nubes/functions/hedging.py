"""Calls that run on several instances at once: copies of late ones, and shadows. The first good answer counts."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from nubes.functions.events import Interrupt, SetTimer
from nubes.functions.replicas import LOOK_S, Replicas
from nubes.functions.state import Call, Function, Instance, State

if TYPE_CHECKING:
    from nubes.serving.seams import Hedging


def places(call: Call) -> tuple[int, ...]:
    """The instances that run a call."""
    return (call.instance, *call.copies) if call.copies else (call.instance,)


def retract(call: Call, instance: int) -> bool:
    """An instance does not run a call any more; returns whether another does."""
    if not call.copies:
        return False
    if call.instance == instance:
        call.instance, *rest = call.copies
        call.copies = tuple(rest)
    else:
        call.copies = tuple(id for id in call.copies if id != instance)
    return True


def recall(c: State, call: Call, winner: int) -> None:
    """A call was answered: those who run it too may stop, but for a shadow, of which its latency is wanted."""
    replicas = call.function.replicas
    shadow = replicas.shadows.get(call.id, 0) if replicas is not None else 0
    c.out.extend(Interrupt(id, call.id) for id in places(call) if id not in (winner, shadow))


def may_copy(call: Call) -> bool:
    """Whether a call may run twice at all; a step of a route goes on under the same id, so that may not."""
    return call.function.spec.idempotent and not call.route and not call.hop


def others(c: State, f: Function, call: Call) -> list[Instance]:
    """Instances with room now that do not run the call, nor on a machine where it runs if there is another one."""
    if f.queued:
        return []  # those that wait go first
    running = [c.instances[id] for id in places(call)]
    able = [i for i in f.open.values() if i not in running and (i.load or i.machine.cpu_used + f.cpu <= i.machine.cpu)]
    machines = {i.machine.id for i in running}
    return [i for i in able if i.machine.id not in machines] or able


def look_later(c: State, replicas: Replicas, hedging: Hedging, call: Call, now: float) -> None:
    """Sets the time at which a call that was just sent is late."""
    at = now + hedging.delay_s(now)
    if at < inf and len(call.copies) - (call.id in replicas.shadows) < hedging.copies:
        _look(c, call, at)


def _look(c: State, call: Call, at: float) -> None:
    c.late[call.id] = at
    c.out.append(SetTimer(at, ("hedge", call.id)))


def late(c: State, call: Call | None, id: int, now: float) -> Instance | None:
    """The time has come that a call is late: the instance that gets a copy, if one may go now."""
    if now < c.late.get(id, inf):
        return None  # it was sent again since
    del c.late[id]
    replicas = call.function.replicas if call is not None else None
    if call is None or replicas is None or replicas.hedging is None or call.instance <= 0 or not may_copy(call):
        return None
    f, hedging = call.function, replicas.hedging
    able = others(c, f, call)
    if not able or (c.queueing.limits and c.queueing.admit(f, now) > now):
        _look(c, call, now + max(LOOK_S, min(hedging.delay_s(now), 1.0)))
        return None
    again = hedging.spend(now)
    if again > now:
        if again < inf:
            _look(c, call, again)
        return None
    return replicas.pick(able, now) if replicas.balancing is not None else min(able, key=lambda i: (i.load, i.id))
