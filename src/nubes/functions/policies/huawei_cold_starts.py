"""Serverless Cold Starts and Where to Find Them: two of the remedies its measurements suggest."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from itertools import pairwise
from math import exp, inf
from typing import Any

from nubes.functions.calendar import next_time
from nubes.functions.seams import FunctionView, KeepAlive, Queueing, Window
from nubes.kernel.policy import Paper, policy
from nubes.kernel.units import seconds

PAPER = Paper(
    "huawei-cold-starts", "Huawei cold-start model", "Serverless Cold Starts and Where to Find Them", "EuroSys 2025"
)
GAPS = 12  # gaps between calls that a rhythm is learned from
CYCLE = 4  # gaps a rhythm may have before it repeats
REGULAR = 0.25  # what may vary by this share of itself, or by twice the keep-alive, is regular
ROUNDING = 1e-9
PROVISIONING = 1.5  # times the mean cold start, as room for a slow one


@policy("timer-aware", paper=PAPER)
class TimerAware(KeepAlive):
    """Unload functions called by a clock at once and load them just before the next tick; keep others for `keep`.

    The next tick is known from a function's schedule, or learned from the gaps between its calls: from the first on
    if it is said to be called by a timer, else from `GAPS` that are regular. Ticks that come within `keep` do not
    unload. `slack` is what a tick may be early or late beyond what was seen.
    """

    def __init__(self, keep: str | float = "60s", slack: str | float = "1s") -> None:
        self.keep = Window(0.0, seconds(keep, "keep"))
        self.slack_s = seconds(slack, "slack")
        self.calls: dict[str, deque[float]] = {}  # function -> when its latest calls arrived

    def arrived(self, f: FunctionView, now: float) -> None:
        calls = self.calls.get(f.name)
        if calls is None:
            calls = self.calls[f.name] = deque(maxlen=GAPS + 1)
        calls.append(now)

    def forgotten(self, f: FunctionView) -> None:
        self.calls.pop(f.name, None)

    def window(self, f: FunctionView, now: float) -> Window:
        keep_s = self.keep.keep_s
        calls = self.calls.get(f.name)
        if f.spec.schedule is None and (not calls or calls[-1] - calls[0] <= keep_s):
            return self.keep  # often called, or not yet often enough to tell
        first_s, last_s = self.next_tick(f, now)
        if last_s == inf or last_s - first_s > max(2.0 * keep_s, REGULAR * (last_s - f.last_arrival_s)):
            return self.keep
        until_s = max(keep_s, last_s - now + self.slack_s)
        prewarm_s = first_s - now - PROVISIONING * f.cold_start_s - self.slack_s
        if first_s - now <= keep_s or prewarm_s <= 0.0:
            return Window(0.0, until_s)
        return Window(prewarm_s, until_s - prewarm_s)

    def next_tick(self, f: FunctionView, now: float) -> tuple[float, float]:
        """When the next call is due, at the earliest and at the latest; (now, inf) if there is no telling."""
        schedule = f.spec.schedule
        if schedule is not None:
            tick_s = f.last_arrival_s + schedule.period_s if schedule.period_s else next_time(schedule, now)
            return tick_s, tick_s
        gaps = [later - call for call, later in pairwise(self.calls.get(f.name, ()))]
        first_s, last_s = rhythm(gaps, f.spec.trigger == "timer")
        if f.last_arrival_s + last_s <= now:
            return now, inf
        return max(now, f.last_arrival_s + first_s), f.last_arrival_s + last_s

    def scores(self, question: str, *view: Any) -> list[tuple[str, float]]:
        """Seconds to the next tick, at the earliest and at the latest, and the keep-alive otherwise."""
        if question != "window":
            return []
        first_s, last_s = self.next_tick(*view)
        return [("earliest", first_s - view[1]), ("latest", last_s - view[1]), ("keep", self.keep.keep_s)]


def rhythm(gaps: list[float], timer: bool) -> tuple[float, float]:
    """The least and the most that the gap after `gaps` was, if they repeat every one to `CYCLE`; (0, inf) if unknown.

    That is one gap known to be made by a `timer`, else `GAPS` of them. A longer cycle has to halve the spread.
    """
    if not gaps or not (timer or len(gaps) == GAPS):
        return 0.0, inf
    bounds, spread = (min(gaps), max(gaps)), max(gaps) - min(gaps)
    for cycle in range(2, min(CYCLE, len(gaps) // 2) + 1):
        phases = [gaps[-offset::-cycle] for offset in range(1, cycle + 1)]
        spread_of_cycle = max(max(phase) - min(phase) for phase in phases)
        if spread_of_cycle < spread / 2.0:
            bounds, spread = (min(phases[-1]), max(phases[-1])), spread_of_cycle
    return bounds


@policy("peak-shaving", paper=PAPER)
class PeakShaving(Queueing):
    """Asynchronous calls that need another instance wait, at most `delay`, while the load is above its usual level.

    Load is the number of busy and starting instances; its usual level fades with the time constant `usual`; above
    `peak` times that level is a peak. As many calls go at once as fit below it; who was held for `delay` goes anyway,
    alone, so that what was held does not make a peak of its own. Asynchronous are calls not made by `call` or `http`,
    of functions without criticality.
    """

    limits = True
    tick_s = 5.0

    def __init__(self, delay: str | float = "60s", peak: float = 1.2, usual: str | float = "10m") -> None:
        self.delay_s = seconds(delay, "delay")
        self.peak = peak
        self.fade = 1.0 - exp(-self.tick_s / seconds(usual, "usual"))
        self.level: float | None = None  # usual number of these instances, once the first tick has come
        self.running = 0
        self.noted: dict[str, int] = {}  # function -> its part of `running`
        self.held: dict[str, deque[float]] = {}  # function -> since when each of its calls waits, the oldest first

    def admit(self, f: FunctionView, now: float) -> float:
        self._note(f, f.busy + f.starting)
        if f.idle or not waits(f):
            return now
        if self._due(f, now) or self.running < self._peak_from():
            return now
        return now + self.tick_s

    def allowance(self, f: FunctionView, now: float) -> int:
        if not waits(f):
            return f.queued
        below = self._peak_from() - self.running
        return f.queued if below == inf else max(1, int(below), self._due(f, now) - f.starting)

    def issued(self, f: FunctionView, now: float) -> None:
        self._note(f, f.busy + f.starting)
        held = self.held.get(f.name)
        if held:
            held.popleft()

    def finished(self, f: FunctionView, ok: bool, exec_s: float, backpressure: str, now: float) -> None:
        self._note(f, f.busy + f.starting - (f.spec.concurrency == 1))  # it counts as busy until this returns

    def tick(self, utilisation: float, now: float) -> None:
        self.level = float(self.running) if self.level is None else self.level + self.fade * (self.running - self.level)

    def scores(self, question: str, *view: Any) -> list[tuple[str, float]]:
        """The load, and from where on it counts as a peak."""
        if question != "admit":
            return []
        return [("instances", self.running), ("peak from", self._peak_from())]

    def _due(self, f: FunctionView, now: float) -> int:
        """How many calls of `f` were held for so long that the next tick would be too late."""
        held = self.held.setdefault(f.name, deque())
        while len(held) > f.queued:
            held.popleft()
        held.extend([now] * (f.queued - len(held)))  # those that came since it was last asked
        return bisect_right(held, now + self.tick_s - self.delay_s - ROUNDING)

    def _peak_from(self) -> float:
        """The load from which on it is a peak; one call more than usual never is."""
        return inf if self.level is None else self.peak * self.level + 1.0

    def _note(self, f: FunctionView, busy: int) -> None:
        self.running += busy - self.noted.get(f.name, 0)
        self.noted[f.name] = busy


def waits(f: FunctionView) -> bool:
    """Whether calls of `f` can wait: nobody waits for their answer."""
    return f.spec.trigger not in ("call", "http") and f.spec.criticality <= 0
