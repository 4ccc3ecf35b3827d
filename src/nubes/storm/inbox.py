"""What a task is told about its calls."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from nubes.client.outcomes import LOST, START_AGAIN
from nubes.drivers.local import wire
from nubes.kernel.errors import Unavailable
from nubes.storm.tasks import Task

if TYPE_CHECKING:
    from nubes.storm.world import World


class Inbox:
    """What one task is told about its calls. See `nubes.drivers.local.plane.Sink`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.frames: deque[list[Any]] = deque()
        self.task: Task | None = None

    def result(self, call: int, status: str, reason: str, output: bytes, released: bool = False) -> None:
        self._add([wire.RESULT, call, status, reason, output, released])

    def item(self, call: int, output: bytes) -> None:
        self._add([wire.YIELD, call, output])

    def printed(self, call: int, function: str, stream: str, text: str) -> None:
        """What functions print is shown where they run."""

    def lost(self) -> None:
        """The control plane is gone."""
        self._add([])

    def _add(self, frame: list[Any]) -> None:
        self.frames.append(frame)
        if self.task is not None:
            self.world.tasks.wake(self.task)
            self.task = None

    def get(self, what: str, until: float | None = None) -> list[Any]:
        """The next frame; none of any kind (`[-1]`) if it does not come in time. Raises `Unavailable`."""
        tasks = self.world.tasks
        if until is not None and not self.frames:
            tasks.call_later(until - tasks.now, self._time_is_over)
        while not self.frames:
            if until is not None and tasks.now >= until:
                return [-1]
            self.task = tasks.current
            tasks.wait(what)
        frame = self.frames.popleft()
        if not frame:
            raise Unavailable(LOST, START_AGAIN)
        return frame

    def _time_is_over(self) -> None:
        if self.task is not None:
            self.world.tasks.wake(self.task)
            self.task = None
