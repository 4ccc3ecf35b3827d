"""asyncio in virtual time: the event loops of a simulated process wait as its tasks do."""

from __future__ import annotations

import asyncio
from asyncio import events
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from nubes.storm.tasks import Task, Tasks

_END = object()
_of_now: Callable[[], Tasks | None] | None = None
_real_loop = events.new_event_loop


def install(of_now: Callable[[], Tasks | None]) -> None:
    """From here on loops that are made in tasks, as by `asyncio.run`, are virtual. `of_now`: the tasks, in one."""
    global _of_now
    _of_now = of_now
    asyncio.new_event_loop = events.new_event_loop = _new_loop


def _new_loop() -> asyncio.AbstractEventLoop:
    tasks = _of_now() if _of_now is not None else None
    return _real_loop() if tasks is None else VirtualLoop(tasks)


class _Selector:
    """What a loop waits on: nothing but time, and being woken by another task."""

    def __init__(self, tasks: Tasks) -> None:
        self.tasks = tasks
        self._waiting: Task | None = None
        self._woken = False

    def select(self, timeout: float | None) -> list[Any]:
        if not self._woken and (timeout is None or timeout > 0):
            self._waiting = self.tasks.current
            if timeout is not None:
                self.tasks.call_later(timeout, self.wake)
            self.tasks.wait("its event loop")
        self._woken = False
        return []

    def wake(self) -> None:
        self._woken = True
        if self._waiting is not None:
            self.tasks.wake(self._waiting)
            self._waiting = None


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop in a task. Sockets, signals and other processes are not part of a simulated day."""

    def __init__(self, tasks: Tasks) -> None:
        super().__init__()
        self._tasks = tasks
        self._selector = _Selector(tasks)
        self._clock_resolution = 1e-6  # epoch seconds as floats are no finer

    def time(self) -> float:
        return self._tasks.now

    def run_forever(self) -> None:
        task = self._tasks.current
        assert task is not None
        task.loop = self
        try:
            super().run_forever()
        finally:
            task.loop = None

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """As in a thread, but that it takes turns."""
        return beside(self._tasks, lambda: func(*args), self)

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """There is none."""

    def pause(self) -> None:
        """Another task's turn: this thread runs no loop, as far as anybody can see."""
        events._set_running_loop(None)

    def resume(self) -> None:
        events._set_running_loop(self)

    def _process_events(self, _: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        self._selector.wake()


def finish(tasks: Tasks, work: Any) -> Any:
    """What comes of a coroutine, in a loop of its own."""
    loop = VirtualLoop(tasks)
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


def each(tasks: Tasks, items: AsyncIterator[Any]) -> Iterator[Any]:
    """The items of an async generator, as they come."""
    loop = VirtualLoop(tasks)

    async def following() -> Any:
        return await anext(items, _END)

    try:
        while (item := loop.run_until_complete(following())) is not _END:
            yield item
    finally:
        loop.close()


def beside(tasks: Tasks, work: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> asyncio.Future[Any]:
    """Runs blocking `work` as a task of the same attempt; the future gets what comes of it."""
    mine = tasks.current
    assert mine is not None
    future: asyncio.Future[Any] = loop.create_future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            if not future.done():
                future.set_exception(error)
        else:
            if not future.done():
                future.set_result(result)
        loop.call_soon_threadsafe(lambda: None)

    task = tasks.start(run, mine.home)
    task.about = mine.about
    return future
