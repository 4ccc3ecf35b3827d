"""Virtual time: one heap of what is to happen, and on it the part of asyncio's loop that a control plane uses."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

Action = Callable[..., Any]


class Timeline:
    """What is to happen, in order of time and then of asking. `life` is the control plane's; what an earlier one asked
    for does not happen."""

    def __init__(self) -> None:
        self.now = 0.0
        self.life = 0
        self.stalled_until = 0.0  # the control plane's process does not get to run before this
        self._heap: list[tuple[float, int, int, Action, tuple[Any, ...]]] = []
        self._count = 0

    def at(self, when: float, action: Action, *args: Any, life: int = 0) -> int:
        """Has `action` done at a time; returns its number. `life` 0: the world's, which no crash takes away."""
        self._count += 1
        heappush(self._heap, (max(when, self.now), self._count, life, action, args))
        return self._count

    def after(self, seconds: float, action: Action, *args: Any) -> int:
        return self.at(self.now + seconds, action, *args)

    def next(self) -> tuple[int, Action, tuple[Any, ...]] | None:
        """Goes on to the next thing that happens; None if nothing will."""
        while self._heap:
            when, number, life, action, args = heappop(self._heap)
            if life and life != self.life:
                continue
            if life and when < self.stalled_until:
                heappush(self._heap, (self.stalled_until, number, life, action, args))
                continue
            self.now = when
            return life, action, args
        return None


class Handle:
    """Something that a loop was asked to do."""

    __slots__ = ("_action", "_args", "_cancelled")

    def __init__(self, action: Action, args: tuple[Any, ...]) -> None:
        self._action = action
        self._args = args
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True

    def cancelled(self) -> bool:
        return self._cancelled

    def __call__(self) -> None:
        if not self._cancelled:
            self._action(*self._args)


class VirtualLoop:
    """The event loop of one life of a control plane. Work for other threads is done at once or at its end, as `r` says.

    `work_s` draws how long that work takes.
    """

    def __init__(self, timeline: Timeline, r: random.Random, work_s: Callable[[], float]) -> None:
        timeline.life += 1
        self._timeline = timeline
        self._life = timeline.life
        self._r = r
        self._work_s = work_s

    def time(self) -> float:
        return self._timeline.now

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """A future's error that nobody asked for: whoever gave the work decided so."""

    def call_soon(self, callback: Action, *args: Any, context: Any = None) -> Any:
        handle = Handle(callback, args)
        self._timeline.at(self._timeline.now, handle, life=self._life)
        return handle

    def call_later(self, delay: float, callback: Action, *args: Any, context: Any = None) -> Any:
        handle = Handle(callback, args)
        self._timeline.at(self._timeline.now + delay, handle, life=self._life)
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        me: Any = self
        return asyncio.Future(loop=me)

    def run_in_executor(self, executor: Any, func: Action, *args: Any) -> asyncio.Future[Any]:
        future = self.create_future()
        took_s = self._work_s()
        done: list[Any] = []

        def work() -> None:
            try:
                done.append((func(*args), None))
            except Exception as error:
                done.append((None, error))

        def end() -> None:
            if not done:
                work()
            result, error = done[0]
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        if self._r.random() < 0.5:
            self._timeline.at(self._timeline.now, work, life=self._life)
        self._timeline.at(self._timeline.now + took_s, end, life=self._life)
        return future


class Clocks:
    """The clocks of a machine: one that only goes on, and one that people set."""

    def __init__(self, timeline: Timeline, start: float = 1_700_000_000.0) -> None:
        self._timeline = timeline
        self._wall = start

    def steady(self) -> float:
        return self._timeline.now

    def wall(self) -> float:
        return self._wall + self._timeline.now

    def set(self, seconds: float) -> None:
        """Somebody sets the clock, forward or back."""
        self._wall += seconds
