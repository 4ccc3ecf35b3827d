"""What a plane needs of a journal and of an event loop, without a disk and in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nubes.functions.controller import Functions
from nubes.storm.tasks import Tasks


class Journal:
    """Keeps the state itself instead of a log: what a plane that comes back finds is what the one before it left."""

    full = ""

    def __init__(self, controller: Functions, tasks: Tasks) -> None:
        self.log = self
        self.count = 0
        self._controller = controller
        self._tasks = tasks

    def recover(self, loop: Any) -> tuple[Functions, float]:
        return self._controller, self._tasks.now

    def append(self, now: float, event: Any) -> None:
        self.count += 1

    def when_safe(self, then: Callable[[], None], otherwise: Callable[[str], None] | None = None) -> None:
        then()


class Loop:
    """The event loop of one plane: what it was to do goes with it."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._open = True

    def call_later(self, delay_s: float, then: Callable[..., Any], *args: Any) -> None:
        self._tasks.call_later(delay_s, self._if_open, then, args)

    def call_soon(self, then: Callable[..., Any], *args: Any) -> None:
        self.call_later(0.0, then, *args)

    def _if_open(self, then: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if self._open:
            then(*args)

    def close(self) -> None:
        self._open = False
