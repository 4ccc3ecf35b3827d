"""What replicas and choosers learn from the recent past: latency by load, quantiles, and a budget to spend."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from math import inf


class LatencyByLoad:
    """The latency that a request would see at a replica, from requests that came when it was about as busy.

    A request is tagged with the requests in flight at its arrival. The estimate is the median of the latest `samples`
    of that tag, and of those nearest to it until there are at least half as many. After `age_s` without any answer
    nothing is known again, so that a replica that was slow, and so got no requests, is tried: by all that hear of it,
    so this is for a single chooser that counts what it sends.
    """

    __slots__ = ("age_s", "by", "cached", "last_s", "samples")

    def __init__(self, samples: int = 16, age_s: float = inf) -> None:
        self.samples = samples
        self.age_s = age_s
        self.last_s = 0.0
        self.by: dict[int, deque[float]] = {}
        self.cached: dict[int, float] = {}

    def add(self, tag: int, latency_s: float, now: float) -> None:
        """A request that found `tag` others was answered."""
        if now > self.last_s + self.age_s:
            self.by.clear()
        self.last_s = now
        known = self.by.get(tag)
        if known is None:
            self.by[tag] = known = deque(maxlen=self.samples)
        known.append(latency_s)
        self.cached.clear()

    def at(self, rif: int, now: float) -> float:
        """Seconds a request would take beside `rif` others; 0 if nothing is known."""
        if now > self.last_s + self.age_s:
            return 0.0
        known = self.cached.get(rif)
        if known is None:
            known = self.cached[rif] = self._estimate(rif)
        return known

    def _estimate(self, rif: int) -> float:
        by = self.by
        found = list(by.get(rif, ()))
        if 2 * len(found) < self.samples:
            for tag in sorted(by, key=lambda tag: abs(tag - rif)):
                if tag != rif:
                    found += by[tag]
                    if 2 * len(found) >= self.samples:
                        break
        if not found:
            return 0.0
        found.sort()
        return found[len(found) // 2]


class Window:
    """The latest `size` values, and any quantile of them."""

    __slots__ = ("latest", "ordered", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.latest: deque[float] = deque()
        self.ordered: list[float] = []

    def __len__(self) -> int:
        return len(self.ordered)

    def add(self, value: float) -> None:
        self.latest.append(value)
        insort(self.ordered, value)
        if len(self.latest) > self.size:
            ordered = self.ordered
            del ordered[bisect_left(ordered, self.latest.popleft())]

    def quantile(self, q: float) -> float:
        """The smallest value that at least a share `q` of them does not exceed. There must be some."""
        ordered = self.ordered
        return ordered[min(int(q * len(ordered)), len(ordered) - 1)]


class Budget:
    """A token bucket that events fill and not time: `share` of a token for each, up to `burst`; `first` at first."""

    __slots__ = ("burst", "share", "tokens")

    def __init__(self, share: float, burst: float, first: float) -> None:
        self.share = share
        self.burst = burst
        self.tokens = first

    def earn(self) -> None:
        self.tokens = min(self.burst, self.tokens + self.share)

    def spend(self) -> bool:
        """Takes a token if there is one."""
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True
