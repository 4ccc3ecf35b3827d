"""XFaaS: time-shift what can wait, and protect what functions call.

`order` is its per-function buffers, `admit` its limits. Its bounded run queue is the controller's own: a function
that finds no CPU or memory blocks, in `order`. What it does across workers and regions is in `xfaas_regions`.
"""

from __future__ import annotations

from math import inf
from typing import Any

from nubes.functions.policies.edf import deadline_s
from nubes.functions.seams import CallView, FunctionView, Queueing
from nubes.kernel.policy import Paper, policy
from nubes.kernel.units import seconds

PAPER = Paper("xfaas", "XFaaS", "XFaaS: Hyperscale and Low Cost Serverless Functions at Meta", "SOSP 2023")
SMOOTHING = 0.5  # weight of the newest utilisation
HIGHEST_SCALE = 10.0  # of the quotas of opportunistic functions
UNKNOWN_S = 1.0  # execution time of a function that has not finished a call yet
ROUNDING = 1e-9


class Limits:
    """What limits one function's calls. Windows follow each other without gap from its first call on."""

    __slots__ = ("base", "before", "ceiling", "ended", "failed", "filled_s", "issued", "since_s", "tokens")

    def __init__(self, now: float) -> None:
        self.since_s = now  # start of the window
        self.issued = 0  # calls in it, and in the one before
        self.before = 0
        self.ended = 0  # calls that ended in it, and how many of these each callee pushed back
        self.failed: dict[str, int] = {}
        self.ceiling = inf  # calls a second that callees can stand, as far as is known
        self.base = 0.0  # calls a second when the first callee pushed back
        self.tokens = 1.0  # calls that may go now, as of `filled_s`
        self.filled_s = now


@policy("xfaas", paper=PAPER)
class XFaas(Queueing):
    """Calls go by criticality, then by deadline, as far as the limits of their function allow.

    Quota: `quota_cpu` / mean CPU-seconds of a call, in calls a second; for opportunistic functions times a scale that
    rises (`gain` a tick) while the machine is less busy than `target` and is cut, down to 0, while it is busier.
    Back-pressure: once a callee pushed back more than `threshold` of a window's calls, the rate is cut to `cut` of
    what it was, else it grows by `add` of the quota a window. Slow start: a window that follows one of n calls may
    have max(`slow_start`, (1 + `alpha`) n); 0 switches that off.
    """

    ordered = True
    limits = True
    tick_s = 10.0

    def __init__(
        self,
        target: float = 0.7,
        gain: float = 0.1,
        window: str | float = "1m",
        threshold: float = 0.01,
        cut: float = 0.5,
        add: float = 0.05,
        slow_start: int = 100,
        alpha: float = 0.2,
    ) -> None:
        self.target = target
        self.gain = gain
        self.window_s = seconds(window, "window")
        self.threshold = threshold
        self.cut = cut
        self.add = add
        self.slow_start = slow_start
        self.alpha = alpha
        self.scale = 1.0
        self.utilisation = target
        self.of: dict[str, Limits] = {}

    def order(self, f: FunctionView, call: CallView) -> tuple[float, ...]:
        return (-f.spec.criticality, deadline_s(f.spec, call))

    def admit(self, f: FunctionView, now: float) -> float:
        limits = self._now(f, now)
        if limits.issued >= self.slow_start > 0 and limits.issued >= self._growth(limits):
            return limits.since_s + self.window_s
        rate = self.rate(f, limits)
        if rate == inf:
            return now
        if rate <= 0.0:
            return inf
        lacking = 1.0 - self._tokens(limits, rate, now)
        return now if lacking <= ROUNDING else now + lacking / rate

    def allowance(self, f: FunctionView, now: float) -> int:
        limits = self._now(f, now)
        rate = self.rate(f, limits)
        growth = self._growth(limits) - limits.issued if self.slow_start else inf
        tokens = self._tokens(limits, rate, now) if rate < inf else inf
        return int(min(f.queued, growth - f.starting, tokens + ROUNDING - f.starting))

    def issued(self, f: FunctionView, now: float) -> None:
        limits = self._now(f, now)
        limits.issued += 1
        rate = self.rate(f, limits)
        if rate != inf:
            limits.tokens = self._tokens(limits, rate, now) - 1.0
            limits.filled_s = now

    def finished(self, f: FunctionView, ok: bool, exec_s: float, backpressure: str, now: float) -> None:
        limits = self._now(f, now)
        limits.ended += 1
        if backpressure:
            limits.failed[backpressure] = limits.failed.get(backpressure, 0) + 1

    def tick(self, utilisation: float, now: float) -> None:
        self.utilisation += SMOOTHING * (utilisation - self.utilisation)
        above = self.utilisation - self.target
        if above <= 0.0:
            self.scale = min(HIGHEST_SCALE, self.scale - self.gain * above / self.target)
        else:
            self.scale *= max(0.0, 1.0 - above / (1.0 - self.target)) if self.target < 1.0 else 0.0

    def rate(self, f: FunctionView, limits: Limits) -> float:
        """Calls a second that `f` may start now."""
        opportunistic = f.spec.quota == "opportunistic"
        if not f.spec.quota_cpu:
            return 0.0 if opportunistic and not self.scale else limits.ceiling
        quota = self._quota(f) * self.scale if opportunistic else self._quota(f)
        return quota if quota < limits.ceiling else limits.ceiling

    def scores(self, question: str, *view: Any) -> list[tuple[str, float]]:
        """What each limit allows: calls a second by quota and by callees, calls in this window; and the scale."""
        if question != "admit":
            return []
        f, now = view
        limits = self._now(f, now)
        quota = self._quota(f) if f.spec.quota_cpu else inf
        growth = self._growth(limits) if self.slow_start else inf
        return [("quota", quota), ("callees", limits.ceiling), ("slow start", growth), ("scale", self.scale)]

    def _quota(self, f: FunctionView) -> float:
        return f.spec.quota_cpu / ((f.exec_s or UNKNOWN_S) * f.spec.cpu) if f.spec.cpu else inf

    def _growth(self, limits: Limits) -> float:
        return max(self.slow_start, limits.before * (1.0 + self.alpha))

    def _tokens(self, limits: Limits, rate: float, now: float) -> float:
        """A second's worth of calls may go at once, and at least one."""
        return min(max(1.0, rate), limits.tokens + (now - limits.filled_s) * rate)

    def _now(self, f: FunctionView, now: float) -> Limits:
        """The limits of `f`, with the windows that have passed behind them."""
        limits = self.of.get(f.name)
        if limits is None:
            limits = self.of[f.name] = Limits(now)
        elif now >= limits.since_s + self.window_s:
            passed = int((now - limits.since_s) / self.window_s)
            self._close(f, limits)
            limits.ceiling += (passed - 1) * self.add * (self._quota(f) if f.spec.quota_cpu else limits.base)
            limits.before = limits.issued if passed == 1 else 0
            limits.issued = limits.ended = 0
            limits.failed.clear()
            limits.since_s += passed * self.window_s
        return limits

    def _close(self, f: FunctionView, limits: Limits) -> None:
        """Additive increase, multiplicative decrease, at the end of a window."""
        if max(limits.failed.values(), default=0) > self.threshold * limits.ended:
            rate = max(limits.issued, limits.ended) / self.window_s  # never 0: it could not grow again
            limits.base = limits.base or rate
            limits.ceiling = self.cut * min(limits.ceiling, rate)
        elif limits.ceiling < inf:
            limits.ceiling += self.add * (self._quota(f) if f.spec.quota_cpu else limits.base)
