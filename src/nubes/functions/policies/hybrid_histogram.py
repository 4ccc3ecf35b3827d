"""Serverless in the Wild: each app's idle times, in a histogram, decide when it is unloaded and loaded again."""

from __future__ import annotations

from collections import deque
from math import inf, sqrt
from typing import Any

from nubes.functions.policies.forecast import forecast
from nubes.functions.seams import FunctionView, KeepAlive, Window
from nubes.kernel.errors import UsageError
from nubes.kernel.policy import Paper, policy
from nubes.kernel.units import seconds

PAPER = Paper(
    "hybrid-histogram",
    "Hybrid histogram keep-alive",
    "Serverless in the Wild: Characterizing and Optimizing the Serverless Workload at a Large Cloud Provider",
    "USENIX ATC 2020",
)
HEAD, TAIL = 0.05, 0.99
RECENT = 64  # idle times that a forecast looks back on
DAY_S = 86_400.0


class Percentile:
    """The first bin up to which `share` of all counts lie. Counts only grow, so it moves a few bins at a time."""

    __slots__ = ("below", "bin", "share")

    def __init__(self, share: float) -> None:
        self.share = share
        self.bin = 0
        self.below = 0.0  # counts before that bin

    def added(self, bins: list[float], bin: int, weight: float, total: float) -> None:
        """`weight` was added to `bins[bin]`; `total` is the sum of all bins."""
        if bin < self.bin:
            self.below += weight
        goal = self.share * total
        while self.below + bins[self.bin] < goal:
            self.below += bins[self.bin]
            self.bin += 1
        while self.bin and self.below >= goal:
            self.bin -= 1
            self.below -= bins[self.bin]


class Usage:
    """What is known of one app: its histogram, kept so that every figure drawn from it is up to date in O(1)."""

    __slots__ = (
        "arrived_s", "bins", "end_s", "head", "histogram", "oob",
        "recent", "shape", "squares", "tail", "total", "window",
    )  # fmt: skip

    def __init__(self, bins: int, window: Window) -> None:
        self.bins = [0.0] * bins
        self.total = 0.0  # sum of the bins, and of their squares
        self.squares = 0.0
        self.oob = 0.0  # idle times beyond the last bin
        self.head = Percentile(HEAD)
        self.tail = Percentile(TAIL)
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.end_s = -inf  # the latest end of an execution, of any function of the app
        self.arrived_s = inf  # the latest call that found the app idle
        self.shape = (-1, -1)  # the bins of head and tail that `histogram` was made from
        self.histogram = self.window = window

    def count(self, bin: int, weight: float) -> None:
        before = self.bins[bin]
        self.bins[bin] = before + weight
        self.squares += weight * (before + before + weight)
        self.total += weight
        self.head.added(self.bins, bin, weight, self.total)
        self.tail.added(self.bins, bin, weight, self.total)

    @property
    def cv(self) -> float:
        """Coefficient of variation of the bin counts."""
        return sqrt(max(0.0, len(self.bins) * self.squares / self.total**2 - 1.0)) if self.total else 0.0

    @property
    def oob_share(self) -> float:
        return self.oob / (self.oob + self.total) if self.oob else 0.0


@policy("hybrid-histogram", paper=PAPER)
class HybridHistogram(KeepAlive):
    """Unload after an execution, load again shortly before the next call is likely, give up after it was.

    Idle times (end of an execution to the next call of an idle app) fall into bins of `bin` up to `range`. If they
    concentrate (coefficient of variation of the bins at least `cv`, which even a single one does): unloaded for 0.9 of
    their 5th percentile, loaded until 1.1 of their 99th. If more than `oob` of them lie beyond `range`: the next
    one is forecast, and the window is 15 % around it. Else loaded for `range`. The paper's variants: `arima=false`,
    `cv=0` (no test), `unit=function` instead of `app`. Each day weighs 1/`decay` of the day before.
    """

    def __init__(
        self,
        range: str | float = "4h",
        bin: str | float = "1m",
        cv: float = 2.0,
        oob: float = 0.5,
        arima: bool = True,
        decay: float = 0.9,
        unit: str = "app",
    ) -> None:
        if unit not in ("app", "function"):
            raise UsageError(f"unit={unit!r} is not known.", "Write unit=app or unit=function.")
        self.range_s = seconds(range, "range")
        self.bin_s = seconds(bin, "bin")
        self.bins = round(self.range_s / self.bin_s) if self.bin_s else 0
        if self.bins < 1:
            raise UsageError(f"range={range} holds no bin of {bin}.", "Choose a range longer than a bin.")
        self.spread = 1.0 + cv * cv
        self.oob = oob
        self.arima = arima
        self.decay = decay
        self.by_app = unit == "app"
        self.standard = Window(0.0, self.range_s)
        self.usages: dict[str, Usage] = {}  # app -> what is known of it
        self.of: dict[str, Usage] = {}  # function -> its app's
        self.weight = 1.0  # of an idle time of today: older days weigh less by comparison
        self.day_ends_s = 0.0

    def arrived(self, f: FunctionView, now: float) -> None:
        if f.busy or f.queued:
            return
        usage = self.of.get(f.name)
        if usage is None:
            usage = self._usage(f)
        end_s = usage.end_s if usage.end_s > f.last_end_s else f.last_end_s
        if end_s >= usage.arrived_s:  # something ran since: the app was idle from then on
            self._learn(usage, now - end_s, now)
        usage.arrived_s = now

    def window(self, f: FunctionView, now: float) -> Window:
        usage = self.of.get(f.name)
        if usage is None:
            return self.standard
        if f.last_end_s > usage.end_s:
            usage.end_s = f.last_end_s
        return usage.window

    def forgotten(self, f: FunctionView) -> None:
        """What is known of its app stays."""
        self.of.pop(f.name, None)
        if not self.by_app:
            self.usages.pop(f.name, None)

    def scores(self, question: str, *view: Any) -> list[tuple[str, float]]:
        """What chose between the three windows: CV of the bins, share out of bounds, idle times known."""
        if question != "window":
            return []
        f: FunctionView = view[0]
        usage = self.of.get(f.name)
        if usage is None:
            return [("histogram", 0.0), ("forecast", 0.0), ("standard", 0.0)]
        known = (usage.total + usage.oob) / self.weight
        return [("histogram", usage.cv), ("forecast", usage.oob_share), ("standard", known)]

    def _usage(self, f: FunctionView) -> Usage:
        app = f.spec.name.partition("/")[0] if self.by_app else f.name
        if app not in self.usages:
            self.usages[app] = Usage(self.bins, self.standard)
        self.of[f.name] = self.usages[app]
        return self.usages[app]

    def _learn(self, usage: Usage, idle_s: float, now: float) -> None:
        if now >= self.day_ends_s:
            self._next_day(now)
        bin = int(idle_s / self.bin_s)
        if bin < self.bins:
            usage.count(bin, self.weight)
        else:
            usage.oob += self.weight
        if usage.oob:
            usage.recent.append(idle_s)
        self._choose(usage)

    def _next_day(self, now: float) -> None:
        days = 1.0 + (now - self.day_ends_s) // DAY_S if self.day_ends_s else 0.0
        self.weight /= self.decay**days
        self.day_ends_s = self.day_ends_s + days * DAY_S if self.day_ends_s else now + DAY_S

    def _choose(self, usage: Usage) -> None:
        total = usage.total
        if usage.oob > self.oob * (usage.oob + total):
            if self.arima:
                usage.window = self._forecast(usage)
                return
        elif usage.squares * self.bins >= self.spread * total * total:
            shape = (usage.head.bin, usage.tail.bin)
            if usage.shape != shape:
                usage.shape = shape  # between the lower edge of the first bin and the upper edge of the last
                usage.histogram = self._between(0.9 * shape[0] * self.bin_s, 1.1 * (shape[1] + 1) * self.bin_s)
            usage.window = usage.histogram
            return
        usage.window = self.standard

    def _between(self, from_s: float, until_s: float) -> Window:
        """Loaded from `from_s` until `until_s` after an execution; not unloaded for the sake of a bin."""
        prewarm_s = from_s if round(from_s / self.bin_s) > 1 else 0.0
        return Window(prewarm_s, until_s - prewarm_s)

    def _forecast(self, usage: Usage) -> Window:
        idle_s = forecast(usage.recent)
        return self._between(0.85 * idle_s, 1.15 * idle_s) if idle_s > 0.0 else self.standard
