"""Virtual time: one heap of what is to happen, and on it as much of asyncio's loop as control planes and agents use."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

Action = Callable[..., Any]


class Lifetime:
    """A process from its start to its end: what it asked for does not happen any more then, and waits while it stands
    still. `number` counts those of one kind."""

    __slots__ = ("number", "over", "stalled_until")

    def __init__(self, number: int) -> None:
        self.number = number
        self.over = False
        self.stalled_until = 0.0

    def stall(self, until_s: float) -> None:
        self.stalled_until = max(self.stalled_until, until_s)  # else what waits already would be overtaken


class Timeline:
    """What is to happen, in order of time and then of asking."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Lifetime | None, Action, tuple[Any, ...]]] = []
        self._count = 0

    def at(self, when: float, action: Action, *args: Any, life: Lifetime | None = None) -> None:
        """Has `action` done at a time by a process; None: by the world, which never ends."""
        self._count += 1
        heappush(self._heap, (max(when, self.now), self._count, life, action, args))

    def after(self, seconds: float, action: Action, *args: Any, life: Lifetime | None = None) -> None:
        self.at(self.now + seconds, action, *args, life=life)

    def next(self) -> tuple[Action, tuple[Any, ...]] | None:
        """Goes on to the next thing that happens; None if nothing will."""
        while self._heap:
            when, number, life, action, args = heappop(self._heap)
            if life is not None:
                if life.over:
                    continue
                if when < life.stalled_until:
                    heappush(self._heap, (life.stalled_until, number, life, action, args))
                    continue
            self.now = when
            return action, args
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
    """The event loop of one process. Work for other threads is done at once or at its end, as `r` says.

    `work_s` draws how long that work takes.
    """

    def __init__(self, timeline: Timeline, life: Lifetime, r: random.Random, work_s: Callable[[], float]) -> None:
        self.life = life
        self._timeline = timeline
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
        self._timeline.at(self._timeline.now, handle, life=self.life)
        return handle

    def call_later(self, delay: float, callback: Action, *args: Any, context: Any = None) -> Any:
        handle = Handle(callback, args)
        self._timeline.at(self._timeline.now + delay, handle, life=self.life)
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
            self._timeline.at(self._timeline.now, work, life=self.life)
        self._timeline.at(self._timeline.now + took_s, end, life=self.life)
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
