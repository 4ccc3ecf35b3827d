"""The functions controller: calls come in, instances start, take calls, fall idle, stop. Policies make all choices."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from nubes.functions import calendar, calls, changes, deployments, disruptions, lifecycle, machines
from nubes.functions import events as e
from nubes.functions.serving import serve
from nubes.functions.state import State


class Functions(State):
    """Sans-I/O. Feed it the events of `nubes.functions.events`; it returns commands."""

    def handle(self, event: Any, now: float) -> list[Any]:
        out: list[Any] = []
        self.out = out
        HANDLERS[type(event)](self, event, now)
        if self.unsettled:
            disruptions.settle(self, now)
        return out


def timer(c: State, event: e.TimerFired, now: float) -> None:
    kind, _, number = event.key[0].partition("/")
    id: Any = event.key[1]
    if kind == "instance":
        lifecycle.instance_timer(c, id, now)
    elif kind == "serve":
        _held(c, id, now)
    elif kind == "retry":
        calls.retry_timer(c, id, now)
    elif kind == "tick":
        _tick(c, id, now)
    elif kind == "hedge":
        calls.hedge_timer(c, id, now)
    elif kind == "prewarm":
        lifecycle.prewarm_timer(c, id, int(number), now)
    elif kind == "disruption":
        disruptions.timer(c, id, now)
    elif kind == "schedule":
        _scheduled(c, id, int(number), now)


def _held(c: State, name: str, now: float) -> None:
    """The time has come that an admission or a batch of this function was waiting for, unless it moved."""
    f = c.functions.get(name)
    if f is not None and now >= f.held_s:
        f.held_s = inf
        if f.queued:
            serve(c, f, now)


def _tick(c: State, number: int, now: float) -> None:
    if number != c.ticks:
        return  # of an earlier policy
    cpu = c.cpu
    c.queueing.tick(c.cpu_used / cpu if cpu else 1.0, now)
    c.out.append(e.SetTimer(now + c.queueing.tick_s, ("tick", number)))
    for f in list(c.functions.values()):
        if f.queued and not f.blocked:
            serve(c, f, now)


def _scheduled(c: State, name: str, version: int, now: float) -> None:
    """The clock calls a function, unless the timer is of an earlier version, or came twice."""
    spec = c.specs.get(name)
    if spec is None or spec.schedule is None or c.apps[deployments.app(name)][0] != version or now < c.due[name]:
        return
    deployments.set_due(c, name, calendar.next_time(spec.schedule, now))
    calls.submitted(c, e.Submitted(c.inner_call(), name, keep=True), now)


HANDLERS: dict[type, Callable[[State, Any, float], None]] = {
    e.Submitted: calls.submitted,
    e.Finished: calls.finished,
    e.TimerFired: timer,
    e.InstanceReady: lifecycle.ready,
    e.InstanceLost: lifecycle.lost,
    e.NodeReady: lambda c, event, now: c.tree.ready(event, now, c.out),
    e.NodeLost: lambda c, event, now: c.tree.lost(event.node, now, c.out),
    e.Deployed: deployments.deployed,
    e.Removed: deployments.removed,
    e.Cancelled: calls.cancelled,
    e.ClientGone: calls.client_gone,
    e.PolicySet: changes.policy_set,
    e.MachineReady: machines.ready,
    e.MachineDraining: machines.draining,
    e.MachineLost: machines.lost,
    e.DisruptionAnswered: disruptions.answered,
    e.Restarted: changes.restarted,
}
