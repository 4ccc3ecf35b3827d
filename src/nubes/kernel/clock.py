"""Time, as drivers read it. Controllers and policies are only ever told."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    def __call__(self) -> float: ...


class WallClock:
    """Epoch seconds that never go back: not when the system clock is set, not across a restart (`floor`)."""

    def __init__(
        self, floor: float = 0.0, wall: Callable[[], float] | None = None, steady: Callable[[], float] | None = None
    ) -> None:
        self._steady = steady or time.monotonic
        self._offset = max((wall or time.time)(), floor) - self._steady()

    def __call__(self) -> float:
        return self._steady() + self._offset


class VirtualClock:
    """Time that a simulation moves forward by hand."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
