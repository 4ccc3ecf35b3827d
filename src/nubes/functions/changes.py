"""What changes for all functions at once: policies, and the control plane itself, which comes back."""

from __future__ import annotations

from math import inf

from nubes.functions import events as e
from nubes.functions.answers import disconnect
from nubes.functions.deployments import keep_alive_of, pools, remove, set_due, stand_ready, start_ticking
from nubes.functions.disruptions import govern, switch
from nubes.functions.instances import drop, fall_idle
from nubes.functions.queues import enqueue, refill, waiting
from nubes.functions.replicas import replicas_of
from nubes.functions.seams import KeepAlive
from nubes.functions.serving import line_up, released, serve
from nubes.functions.state import Function, State


def policy_set(c: State, event: e.PolicySet, now: float) -> None:
    if event.seam == "keep-alive" and event.function:
        c._make("keep-alive", event.policy)  # one that cannot be made changes nothing
        c.chosen[event.function] = event.policy
        for f in pools(c, event.function):
            _switch(c, f, keep_alive_of(c, f.spec), now)
    elif event.seam == "keep-alive":
        before, c.keep_alives[""] = c.keep_alives[""], c._make("keep-alive", event.policy)
        for f in c.functions.values():
            if f.keep_alive is before:
                _switch(c, f, c.keep_alives[""], now)
    elif event.seam == "queueing":
        c.queueing = c._make("queueing", event.policy)
        for f in c.functions.values():
            refill(c, f, sorted(waiting(f), key=lambda call: call.arrived_s))
        line_up(c, now)
        start_ticking(c, now)
    elif event.seam == "placement":
        c.placement = c._make("placement", event.policy)
    elif event.seam in ("balancing", "hedging"):
        setattr(c, event.seam, c._make(event.seam, event.policy))
        for f in c.functions.values():
            if not getattr(f.spec, event.seam):
                f.replicas = replicas_of(c, f.spec)
    elif event.seam == "disruption":
        c.disruption = c._make("disruption", event.policy)
        for f in c.functions.values():
            if not f.spec.disruption:
                switch(c, f, now)
    elif event.seam == "cold-start":
        c.tree.policy = c._make("cold-start", event.policy)
    released(c, now)


def _switch(c: State, f: Function, policy: KeepAlive, now: float) -> None:
    """Another keep-alive policy decides over `f`, over instances that are idle already too."""
    f.keep_alive = policy
    for instance in [i for i in f.instances.values() if i.ready and not i.load]:
        fall_idle(c, instance, now)
    if f.queued and f.open and not f.blocked:  # they may have been bound to other instances
        serve(c, f, now)


def restarted(c: State, event: e.Restarted, now: float) -> None:
    """Durable calls start over, whatever state they were in; schedules and ticks go on. Other machines join anew."""
    c.tree.clear()
    c.late.clear()
    for id in [id for id in c.machines if id]:
        del c.machines[id]
        c.tree.forget(id)
    for machine in c.machines.values():
        machine.draining, machine.goes_s = False, inf
    c.draining = 0
    for instance in list(c.instances.values()):
        drop(c, instance, now)
    disconnect(c)
    for app in [name for name, (_, _, ephemeral) in c.apps.items() if ephemeral]:
        remove(c, app, now)
    for f in c.functions.values():
        refill(c, f, [])
        f.failures, f.held_s = 0, inf
        govern(c, f, f.spec)  # of the task control before no timer is left
    for call in c.calls.values():
        call.copies = ()
        enqueue(c, call.function, call)
    line_up(c, now)
    released(c, now)
    for spec in c.specs.values():
        stand_ready(c, spec, now)
    for name, at in c.due.items():
        set_due(c, name, max(now, at))
    start_ticking(c, now)
