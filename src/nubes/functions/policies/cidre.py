"""CIDRE: concurrency-informed scaling and eviction.

The formula of CIP is the published one. The paper's text was not at hand for the conditions of CSS: they are a
reconstruction from its abstract. Its authors' prototype (github.com/nzc5ve/cidre_asplos25) scales by other figures of
its own platform: there, calls that wait for 1.25 executions on average have an instance started.
"""

from __future__ import annotations

from math import exp
from typing import Any

from nubes.functions.events import DELAYED
from nubes.functions.policies.faascache import GreedyDual
from nubes.functions.seams import FunctionView, InstanceView
from nubes.kernel.policy import Paper, policy
from nubes.kernel.units import seconds

PAPER = Paper("cidre", "CIDRE", "Concurrency-Informed Orchestration for Serverless Functions", "ASPLOS 2025")


@policy("always-delayed")
class AlwaysDelayed(GreedyDual):
    """Never start beside an instance of the function: calls wait for the one there is."""

    def start(self, f: FunctionView, now: float) -> int:
        return 0 if f.busy or f.idle or f.starting else 1


@policy("cidre-bss", paper=PAPER)
class BasicSpeculation(GreedyDual):
    """Speculative scaling (BSS): a waiting call takes a new instance or a busy one that falls idle, whichever is first.

    That is how every queue is served, except where calls are bound to their starts as in FaasCache. A start under way
    whose call a busy instance took covers the next call that waits, so that no more are started than wait uncovered.
    """


@policy("cidre-css", paper=PAPER)
class ConditionalSpeculation(BasicSpeculation):
    """Conditional speculation (CSS): only start beside busy instances while that pays.

    Per function: Te execution, Tp provisioning, Td the latest delayed-warm wait, Ti how long a new instance stood idle
    before its first use. `Ti > Te` at a first use: stop speculating. `Td > Tp` at a delayed start: speculate again.
    With `foresee`, also speculate where the calls that wait would by Te and Tp wait longer for the instances there are
    than for a new one; without it the first of them has to have waited for as long as that takes.
    """

    def __init__(self, foresee: bool = False) -> None:
        super().__init__()
        self.foresee = foresee
        self.speculate: dict[str, bool] = {}

    def start(self, f: FunctionView, now: float) -> int:
        if self.speculate.get(f.name, True) or not (f.busy or f.idle or f.starting):
            return super().start(f, now)
        if self.foresee and 0 < f.cold_start_s < self._wait_s(f):
            return super().start(f, now)
        return 0

    def dispatched(self, instance: InstanceView, how: int, waited_s: float, now: float) -> None:
        super().dispatched(instance, how, waited_s, now)
        f = instance.function
        if how == DELAYED:
            if waited_s > f.cold_start_s > 0.0:
                self.speculate[f.name] = True
        elif instance.uses == 1 and now - instance.ready_s > f.exec_s > 0.0:
            self.speculate[f.name] = False

    def forgotten(self, f: FunctionView) -> None:
        super().forgotten(f)
        self.speculate.pop(f.name, None)

    def scores(self, question: str, *view: Any) -> list[tuple[str, float]]:
        """Seconds that a waiting call is expected to wait for a new instance, and for a busy one."""
        if question != "start":
            return super().scores(question, *view)
        f: FunctionView = view[0]
        return [("new instance", f.cold_start_s), ("busy instance", self._wait_s(f))]

    def _wait_s(self, f: FunctionView) -> float:
        """How long the last of the calls that wait would wait, if nothing were started."""
        return f.queued * f.exec_s / max(1, (f.busy + f.idle + f.starting) * f.spec.concurrency)


@policy("cidre", paper=PAPER)
class Cidre(ConditionalSpeculation):
    """CSS with concurrency-informed eviction (CIP): `clock + freq * cost / (size * n)`, n the cached instances of f.

    `freq` counts calls, each fading with the time constant `recent`. Dividing by n lowers each sibling of a wide
    function in turn and raises it again as siblings leave, so that evictions spread over functions.
    """

    def __init__(self, recent: str | float = "10m", foresee: bool = False) -> None:
        super().__init__(foresee)
        self.recent_s = seconds(recent, "recent")
        self.calls: dict[str, tuple[float, float]] = {}  # function -> its recent calls, and when they were counted

    def arrived(self, f: FunctionView, now: float) -> None:
        known = self.calls.get(f.name)
        count = 1.0 if known is None else 1.0 + known[0] * exp((known[1] - now) / self.recent_s)
        self.calls[f.name] = (count, now)

    def forgotten(self, f: FunctionView) -> None:
        super().forgotten(f)
        self.calls.pop(f.name, None)

    def value(self, instance: InstanceView, now: float) -> float:
        f = instance.function
        count, at = self.calls.get(f.name, (1.0, f.last_arrival_s))  # a function whose calls another policy sees
        freq = count * exp((at - now) / self.recent_s)
        return freq * (f.cold_start_s or 1.0) / (f.spec.memory_bytes / 2**20 * max(1, f.busy + f.idle))
