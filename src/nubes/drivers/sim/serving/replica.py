"""A replica that shares its processors among the requests it holds."""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf

from nubes.serving.estimates import LatencyByLoad
from nubes.serving.seams import Report


class Shared:
    """Processor sharing, in virtual time of its own: `work` is how much each request in it has got since the start.

    A request gets at most one core. `answered` and `used` count since the last report.
    """

    __slots__ = (
        "alive", "answered", "capacity", "cores", "due", "held", "latency", "now", "rate", "rif", "slowdown", "used",
        "version", "work",
    )  # fmt: skip

    def __init__(self, cores: float, slowdown: float) -> None:
        self.cores = self.capacity = cores
        self.slowdown = slowdown
        self.rif = 0
        self.work = 0.0
        self.rate = 1.0
        self.now = 0.0
        self.held: list[tuple[float, int]] = []  # a heap: (work at which it is done, request)
        self.alive: set[int] = set()
        self.version = 0  # of the next completion, so that an outdated one is known
        self.due = inf  # when that is
        self.latency = LatencyByLoad()
        self.answered = 0
        self.used = 0.0

    def take(self, request: int, work: float, now: float) -> bool:
        """A request comes; returns whether the next completion is at another time (as all these do)."""
        self._advance(now)
        self.rif += 1
        self.alive.add(request)
        heappush(self.held, (self.work + work * self.slowdown, request))
        return self._due(now)

    def drop(self, request: int, now: float) -> bool:
        """A request is given up."""
        self._advance(now)
        self.rif -= 1
        self.alive.discard(request)
        return self._due(now)

    def done(self, now: float) -> int:
        """The request that completes now, as `due` said."""
        self._advance(now)
        request = heappop(self.held)[1]
        self.rif -= 1
        self.alive.discard(request)
        self.answered += 1
        self._due(now)
        return request

    def becomes(self, capacity: float, now: float) -> bool:
        """Others on its machine leave it so many cores from now on."""
        self._advance(now)
        self.capacity = capacity
        return self._due(now)

    def report(self, seconds: float, now: float) -> Report:
        """What it says of the last `seconds`, if it was asked that long ago."""
        self._advance(now)
        made = Report(self.rif, self.answered / seconds, self.used / seconds / self.cores)
        self.answered, self.used = 0, 0.0
        return made

    def _advance(self, now: float) -> None:
        got = (now - self.now) * self.rate
        self.work += got
        self.used += got * self.rif
        self.now = now

    def _due(self, now: float) -> bool:
        held, alive = self.held, self.alive
        while held and held[0][1] not in alive:
            heappop(held)
        rif = self.rif
        self.rate = rate = 1.0 if rif <= self.capacity else self.capacity / rif
        at = now + max(0.0, held[0][0] - self.work) / rate if held else inf
        if at == self.due:
            return False
        self.due = at
        self.version += 1
        return True
