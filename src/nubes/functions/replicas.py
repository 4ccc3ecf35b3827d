"""The instances of a function that names how calls are balanced or hedged, as replicas that policies choose among.

Of other functions the last instance that came open takes the next call, and nothing here is in the way. The control
plane hands out all calls, so it is the one client of its instances: probes are answered at once, and requests in flight
are known exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING

from nubes.kernel.errors import UsageError
from nubes.kernel.policy import make
from nubes.serving.estimates import LatencyByLoad
from nubes.serving.policies import simple
from nubes.serving.seams import Balancing, Hedging, Probe, ReplicaView, Report

if TYPE_CHECKING:
    from nubes.functions.spec import FunctionSpec
    from nubes.functions.state import Instance, State

USUAL = simple.Latest.name
AGE_S = 2.0  # an instance without an answer for so long is taken for new
LOOK_S = 0.01  # a copy that finds no instance free looks again after so long, at least


class Replica:
    """An instance, what policies see of it, and what it would answer to probes and polls."""

    __slots__ = ("answered", "busy_s", "found", "instance", "latencies", "view")

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.view = ReplicaView(instance.id, str(instance.machine.id), instance.machine.zone)
        self.view.rif = instance.load
        self.latencies = LatencyByLoad(age_s=AGE_S)
        self.found: dict[int, int] = {}  # call -> those in flight when it came
        self.answered = 0  # calls since the last report
        self.busy_s = 0.0

    def report(self, seconds: float) -> Report:
        """What it did in the last `seconds`; the CPU it used is what its calls took."""
        made = Report(self.view.rif, self.answered / seconds, self.busy_s / seconds)
        self.answered, self.busy_s = 0, 0.0
        return made


class Replicas:
    """What a function's policies see and remember of its instances."""

    def __init__(self, balancing: Balancing | None, hedging: Hedging | None) -> None:
        self.balancing = balancing
        self.hedging = hedging
        self.known: dict[int, Replica] = {}
        self.shadows: dict[int, int] = {}  # call -> the instance that runs it for its latency only
        self.copies = 0  # sent so far, shadows too
        self.polled_s = -inf

    def of(self, instance: Instance) -> Replica:
        known = self.known.get(instance.id)
        if known is None:
            known = self.known[instance.id] = Replica(instance)
        return known

    def pick(self, able: Sequence[Instance], now: float) -> Instance:
        """The instance that takes a call. `able` are at least one, the last to come open first."""
        policy = self.balancing
        if policy is None:
            return able[0]
        views = self._open(able)
        if policy.poll_s and now >= self.polled_s + policy.poll_s:
            if self.polled_s > -inf:
                for known in self.known.values():
                    policy.reported(known.view, known.report(now - self.polled_s), now)
            self.polled_s = now
        answers: list[Probe] = []
        for view in policy.probes(views, now):
            rif = view.rif
            latency_s = self.known[view.id].latencies.at(rif, now)
            policy.probed(view, rif, latency_s, now)
            if policy.waits:
                answers.append(Probe(view, rif, latency_s))
        chosen = policy.choose(views, now, answers) if answers else policy.choose(views, now)
        return self.known[chosen.id].instance

    def shadow(self, able: Sequence[Instance], now: float) -> Instance | None:
        """An instance that is to run a call too, though nobody waits for its answer."""
        if self.balancing is None or not able:
            return None
        view = self.balancing.shadow(self._open(able), now)
        return None if view is None else self.known[view.id].instance

    def _open(self, able: Sequence[Instance]) -> list[ReplicaView]:
        for known in self.known.values():
            known.view.open = False
        views = [self.of(instance).view for instance in able]
        for view in views:
            view.open = True
        views.sort(key=lambda view: view.id)
        return views

    def sent(self, instance: Instance, call: int, now: float) -> None:
        """A call goes to an instance."""
        replica = self.of(instance)
        replica.found[call] = replica.view.rif
        replica.view.sent(now)
        if self.balancing is not None:
            self.balancing.sent(replica.view, now)

    def ended(self, instance: Instance, call: int, ok: bool, latency_s: float, exec_s: float, now: float) -> None:
        """An instance is done with a call."""
        replica = self.of(instance)
        replica.view.answered(latency_s, now)
        replica.answered += 1
        replica.busy_s += exec_s
        if (found := replica.found.pop(call, None)) is not None:
            replica.latencies.add(found, latency_s, now)
        if self.shadows.get(call) == instance.id:
            del self.shadows[call]
        if self.balancing is not None:
            self.balancing.answered(replica.view, ok, latency_s, now)

    def left(self, instance: Instance) -> None:
        """An instance is gone."""
        replica = self.known.pop(instance.id, None)
        if replica is not None:
            self.shadows = {call: id for call, id in self.shadows.items() if id != instance.id}
            if self.balancing is not None:
                self.balancing.left(replica.view)


def replicas_of(c: State, spec: FunctionSpec) -> Replicas | None:
    """What a function asks for, or else the cloud's; None if that is what it gets without any policy being asked."""
    balancing, hedging = own_text(c, spec, "balancing"), own_text(c, spec, "hedging")
    if not (balancing or hedging or c.hedging.copies) and c.balancing.name == USUAL:
        return None
    chosen: Balancing = c._make("balancing", balancing or c.balancing.text)
    hedges: Hedging = c._make("hedging", hedging or c.hedging.text)
    ours = chosen if chosen.name != USUAL else None
    theirs = hedges if hedges.copies and spec.idempotent and not hedges.tied else None
    return Replicas(ours, theirs) if ours or theirs else None


def own_text(c: State, spec: FunctionSpec, seam: str) -> str:
    """What a function was switched to at `seam` (balancing, hedging), or declared with; "": what the cloud has."""
    declared: str = getattr(spec, seam)
    return c.chosen[seam].get(spec.name, declared)


def verify_replicas(spec: FunctionSpec) -> None:
    """Raises `UsageError` if its calls cannot be balanced or hedged as it says."""
    make("balancing", spec.balancing or None)
    hedging: Hedging = make("hedging", spec.hedging or None)
    if spec.hedging and hedging.copies and not spec.idempotent:
        raise UsageError(
            f"{spec.name!r} is hedged, but may not run twice for one call.",
            "Say idempotent=True if it may, or leave hedging out.",
        )
    if hedging.tied:
        raise UsageError(
            f"{spec.name!r}: tied copies are for replicas with queues of their own; calls wait in one queue here.",
            "Leave tied out: whichever instance comes free first takes the call anyway.",
        )
    if hedging.copies and spec.generator:
        raise UsageError(f"{spec.name!r} yields items, so two runs of it would mix.", "Leave hedging out.")
