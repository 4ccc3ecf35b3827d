"""Serverless Cold Starts and Where to Find Them: two of the remedies its measurements suggest."""

from __future__ import annotations

from collections import deque
from math import exp, inf
from typing import Any

from nubes.functions.calendar import next_time
from nubes.functions.seams import FunctionView, KeepAlive, Queueing, Window
from nubes.kernel.policy import Paper, policy
from nubes.kernel.units import seconds

PAPER = Paper(
    "huawei-cold-starts", "Huawei cold-start model", "Serverless Cold Starts and Where to Find Them", "EuroSys 2025"
)
GAPS = 8  # gaps between calls that a rhythm is learned from
CYCLE = 4  # gaps a rhythm may have before it repeats
REGULAR = 0.25  # a gap this far off, as a share of it, is no rhythm
PROVISIONING = 1.5  # times the mean cold start, as room for a slow one


@policy("timer-aware", paper=PAPER)
class TimerAware(KeepAlive):
    """Unload functions called by a clock at once and load them just before the next tick; keep others for `keep`.

    The next tick is known from a function's schedule, or learned from the gaps between its calls: from the first on
    if it is said to be called by a timer, else from `GAPS` that repeat. Ticks that come within `keep` do not unload.
    `slack` is what a tick may be early or late beyond what was seen.
    """

    def __init__(self, keep: str | float = "60s", slack: str | float = "1s") -> None:
        self.keep = Window(0.0, seconds(keep, "keep"))
        self.slack_s = seconds(slack, "slack")
        self.gaps: dict[str, deque[float]] = {}

    def arrived(self, f: FunctionView, now: float) -> None:
        gaps = self.gaps.get(f.name)
        if gaps is not None:
            gaps.append(now - f.last_arrival_s)
        else:
            self.gaps[f.name] = deque((now - f.last_arrival_s,) if f.last_arrival_s > -inf else (), GAPS)

    def window(self, f: FunctionView, now: float) -> Window:
        tick_s, error_s = self.next_tick(f, now)
        ahead_s = tick_s - now
        if ahead_s == inf:
            return self.keep
        late_s = ahead_s + error_s + self.slack_s
        early_s = PROVISIONING * f.cold_start_s + error_s + self.slack_s
        if ahead_s <= max(self.keep.keep_s, early_s):
            return Window(0.0, max(self.keep.keep_s, late_s))
        return Window(ahead_s - early_s, late_s - (ahead_s - early_s))

    def next_tick(self, f: FunctionView, now: float) -> tuple[float, float]:
        """When the next call is due, and how far off that may be; `inf` if there is no telling."""
        schedule = f.spec.schedule
        if schedule is not None and not schedule.period_s:
            return next_time(schedule, now), 0.0
        timer = f.spec.trigger == "timer"
        gap_s, error_s = (schedule.period_s, 0.0) if schedule else rhythm(self.gaps.get(f.name, ()), timer)
        tick_s = f.last_arrival_s + gap_s
        return (tick_s, error_s) if tick_s > now else (inf, inf)

    def scores(self, question: str, *view: Any) -> list[tuple[str, float]]:
        """Seconds to the next tick, how far off it may be, and the keep-alive otherwise."""
        if question != "window":
            return []
        tick_s, error_s = self.next_tick(*view)
        return [("next tick", tick_s - view[1]), ("error", error_s), ("keep", self.keep.keep_s)]


def rhythm(gaps: deque[float] | tuple[float, ...], timer: bool) -> tuple[float, float]:
    """The gap that follows `gaps` if they repeat every one to `CYCLE`, and the largest error such a guess has made.

    (inf, inf) if they do not. Known to be made by a `timer`, a single gap is taken for its period.
    """
    seen = list(gaps)
    if timer and len(seen) == 1:
        return seen[0], 0.0
    best = (inf, inf)
    if timer or len(seen) == GAPS:
        for cycle in range(1, min(CYCLE, len(seen) // 2) + 1):
            error = max(abs(a - b) for a, b in zip(seen, seen[cycle:], strict=False))
            if error < best[1] and error <= REGULAR * seen[-cycle]:
                phase = seen[-cycle::-cycle]
                best = (sum(phase) / len(phase), error)
    return best


@policy("peak-shaving", paper=PAPER)
class PeakShaving(Queueing):
    """Asynchronous calls that need another instance wait, at most `delay`, while the load is above its usual level.

    Load is the number of busy instances; its usual level fades with the time constant `usual`; above `peak` times
    that level is a peak. Asynchronous are calls not made by `call` or `http`, of functions without criticality.
    """

    limits = True
    tick_s = 5.0

    def __init__(self, delay: str | float = "60s", peak: float = 1.2, usual: str | float = "10m") -> None:
        self.delay_s = seconds(delay, "delay")
        self.peak = peak
        self.fade = 1.0 - exp(-self.tick_s / seconds(usual, "usual"))
        self.level: float | None = None  # usual number of busy instances, once the first tick has come
        self.running = 0
        self.noted: dict[str, int] = {}  # function -> its part of `running`
        self.since: dict[str, float] = {}  # function -> when its calls began to be held
        self.freed: dict[str, int] = {}  # function -> calls that have been held for long enough and still have to go

    def admit(self, f: FunctionView, now: float) -> float:
        if f.spec.trigger in ("call", "http") or f.spec.criticality > 0 or f.idle or self.freed.get(f.name):
            return now
        if self.level is None or self.running < self.peak * self.level + 1.0:
            self.since.pop(f.name, None)
            return now
        since = self.since.setdefault(f.name, now)
        if now < since + self.delay_s:
            return min(now + self.tick_s, since + self.delay_s)
        del self.since[f.name]
        self.freed[f.name] = f.queued
        return now

    def issued(self, f: FunctionView, now: float) -> None:
        self._note(f, f.busy)
        if self.freed.get(f.name):
            self.freed[f.name] = min(self.freed[f.name] - 1, f.queued)

    def finished(self, f: FunctionView, ok: bool, exec_s: float, backpressure: str, now: float) -> None:
        self._note(f, f.busy - (f.spec.concurrency == 1))  # the instance counts as busy until this returns

    def tick(self, utilisation: float, now: float) -> None:
        self.level = float(self.running) if self.level is None else self.level + self.fade * (self.running - self.level)

    def scores(self, question: str, *view: Any) -> list[tuple[str, float]]:
        """The load, and from where on it counts as a peak."""
        if question != "admit":
            return []
        return [("busy instances", self.running), ("peak from", self.peak * (self.level or 0.0) + 1.0)]

    def _note(self, f: FunctionView, busy: int) -> None:
        self.running += busy - self.noted.get(f.name, 0)
        self.noted[f.name] = busy
