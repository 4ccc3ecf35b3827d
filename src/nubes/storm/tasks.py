"""Tasks that take turns in virtual time, all in one thread: which one runs next depends on nothing but what they did.

A task runs until it waits. One that is killed never goes on: not even its `finally` blocks run, as those of a process
that gets SIGKILL would not.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

import greenlet

from nubes import place

_graveyard: list[greenlet.greenlet] = []  # kept, as what is collected would be unwound
STEPS = 50_000  # switches after which a day is taken to go round in circles


class Endless(Exception):
    """The day goes round in circles without time passing, or forever."""


class Home:
    """The process that a task runs in: its modules, and whether they are in the cloud. `owner` is its connection."""

    def __init__(self, modules: dict[str, Any], local: bool, owner: int) -> None:
        self.modules = modules
        self.local = local
        self.owner = owner
        self.tasks: set[Task] = set()

    def settle(self) -> None:
        """From here on this process's modules are those that `import` and `pickle` find."""
        sys.modules.update(self.modules)
        place._local = self.local


class Task:
    """One line of work. `about` is what its driver knows of it."""

    __slots__ = ("about", "body", "dead", "home", "loop", "waits")

    def __init__(self, home: Home) -> None:
        self.body: greenlet.greenlet
        self.home = home
        self.dead = False
        self.waits = ""  # for what, if it does
        self.loop: Any = None  # the virtual event loop that runs in it
        self.about: Any = None


class Tasks:
    """Runs tasks and timers by turns: who is ready first goes first, and time passes when none is."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.current: Task | None = None
        self._hub = greenlet.getcurrent()
        self._ready: deque[tuple[Task, Any]] = deque()
        self._heap: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._sequence = 0
        self._steps = 0

    # -- from within tasks -------------------------------------------------------------------------------------------

    def here(self) -> Task | None:
        """The task that runs now, if this is one: other threads are none."""
        task = self.current
        return task if task is not None and task.body is greenlet.getcurrent() else None

    def wait(self, what: str = "") -> Any:
        """Waits until somebody wakes this task; what it is woken with."""
        task = self.current
        assert task is not None
        task.waits = what
        value = self._hub.switch()
        task.waits = ""
        return value

    def sleep(self, seconds: float) -> None:
        task = self.current
        assert task is not None
        self.call_later(max(0.0, seconds), self.wake, task)
        self.wait("time to pass")

    # -- from anywhere -----------------------------------------------------------------------------------------------

    def start(self, run: Callable[[], object], home: Home) -> Task:
        """A task that runs `run`, as soon as it is its turn."""
        task = Task(home)
        task.body = greenlet.greenlet(lambda _: self._live(task, run), self._hub)
        home.tasks.add(task)
        self.wake(task)
        return task

    def wake(self, task: Task, value: Any = None) -> None:
        if not task.dead:
            self._ready.append((task, value))

    def end(self, home: Home) -> None:
        """Kills all tasks of a process. Does not return if the one that asks is among them."""
        mine = self.here()
        for task in home.tasks:
            task.dead = True
            _graveyard.append(task.body)
        home.tasks.clear()
        if mine is not None and mine.dead:
            self._hub.switch()

    def call_later(self, delay_s: float, then: Callable[..., Any], *args: Any) -> None:
        self._sequence += 1
        heappush(self._heap, (self.now + delay_s, self._sequence, then, args))

    def call_soon(self, then: Callable[..., Any], *args: Any) -> None:
        self.call_later(0.0, then, *args)

    # -- the loop ----------------------------------------------------------------------------------------------------

    def step(self, until: float) -> bool:
        """Lets the next one have its turn; False if nothing is to come before `until`. Raises `Endless`."""
        self._steps += 1
        if self._steps > STEPS:
            raise Endless
        if self._ready:
            task, value = self._ready.popleft()
            if not task.dead:
                self._switch(task, value)
            return True
        if not self._heap or self._heap[0][0] > until:
            return False
        at, _, then, args = heappop(self._heap)
        self.now = max(self.now, at)
        then(*args)
        return True

    def _switch(self, task: Task, value: Any) -> None:
        task.home.settle()
        self.current = task
        if task.loop is not None:
            task.loop.resume()
        task.body.switch(value)
        self.current = None
        if task.loop is not None:
            task.loop.pause()

    def _live(self, task: Task, run: Callable[[], object]) -> None:
        try:
            run()
        finally:
            if not task.dead:
                task.home.tasks.discard(task)

    def close(self) -> None:
        """The day is over: who still waits never goes on."""
        for task, _ in self._ready:
            _graveyard.append(task.body)
        self._ready.clear()
        self._heap.clear()
