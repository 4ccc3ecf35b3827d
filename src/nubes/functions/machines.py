"""Machines join, are to go, and are lost; what they hold goes with them and comes back elsewhere."""

from __future__ import annotations

from math import inf

from nubes.functions import events as e
from nubes.functions.instances import MOVED, drained, drop, requeue, review, unsettle
from nubes.functions.serving import after_stop, ensure, released, serve
from nubes.functions.state import Machine, State


def ready(c: State, event: e.MachineReady, now: float) -> None:
    """A machine joins, changes its size, or stays after all."""
    m = c.machines.get(event.machine)
    if m is None:
        m = c.machines[event.machine] = Machine(event.machine, event.cpu, event.memory_bytes, event.zone)
        c.tree.budgets[m.id] = m.memory_bytes * c.tree_share
        for f in list(c.functions.values()):
            c.tree.prepare(f, now, c.out)
    m.cpu, m.memory_bytes, m.zone = event.cpu, event.memory_bytes, event.zone
    c.tree.budgets[m.id] = m.memory_bytes * c.tree_share
    m.draining, m.goes_s = False, inf
    _count(c)
    for i in list(m.instances.values()):
        unsettle(c, i.function)
        review(c, i, "its machine has no room for it any more", now)
    c.tree.trim(m.id, now, c.out)
    released(c, now)
    for f in c.functions.values():
        if f.queued and not f.blocked:
            serve(c, f, now)
        ensure(c, f, now)


def draining(c: State, event: e.MachineDraining, now: float) -> None:
    """Idle instances go at once, busy ones after their calls; what was asked to stand ready does so elsewhere.

    Those of functions that say what they can bear go when their task control lets them.
    """
    m = c.machines.get(event.machine)
    if m is None:
        return
    m.draining, m.goes_s = True, now + event.within_s
    _count(c)
    drained(c, m)
    functions = {i.function.name: i.function for i in m.instances.values()}
    for f in functions.values():
        ensure(c, f, now)
    for i in list(m.instances.values()):
        unsettle(c, i.function)
        review(c, i, MOVED, now)
    for f in functions.values():
        after_stop(c, f, now)
    released(c, now)  # what it alone had room for gets to know


def lost(c: State, event: e.MachineLost, now: float) -> None:
    """Calls that ran on it start over elsewhere, as far as they may."""
    m = c.machines.pop(event.machine, None)
    if m is None:
        return
    _count(c)
    c.tree.forget(m.id)
    gone = list(m.instances.values())
    for i in gone:
        drop(c, i, now)
    for i in gone:
        requeue(c, i, event.reason or f"machine {m.id} is gone", now, guilty=False)
    for f in {i.function.name: i.function for i in gone}.values():
        after_stop(c, f, now)
    released(c, now)


def _count(c: State) -> None:
    c.draining = sum(m.draining for m in c.machines.values())
