"""Operations of a task: what is counted, told of in the story, and followed by a point where faults may be."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from nubes.drivers.local import payload
from nubes.storm.attempts import Attempt
from nubes.storm.inbox import Inbox

if TYPE_CHECKING:
    from nubes.storm.world import World

PATIENT_OPERATIONS = 100  # so many operations of a task without waiting take a moment: others get their turn


class Operation:
    """One operation, from before it begins to after its answer is there, and the point after it."""

    __slots__ = ("_attempt", "_reaches", "_what", "_world", "told")

    def __init__(self, world: World, what: Callable[[], str], reaches: bool) -> None:
        self._world = world
        self._what = what
        self._reaches = reaches
        self._attempt: Attempt
        self.told = ""

    def gave(self, answer: Any) -> None:
        """What came of it, for the story."""
        if self._world.tells and answer is not None:
            self.told = f" -> {shown(answer)}"

    def __enter__(self) -> Operation:
        world = self._world
        self._attempt = world.task().about
        world.operations += 1
        if self._reaches:
            world.reach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        world, attempt = self._world, self._attempt
        if kind is GeneratorExit:
            return
        if world.tells:
            who = f"{attempt.function} {attempt.call}" if attempt.call else "the scenario"
            failed = f", which raises {kind.__name__}" if kind is not None else self.told
            world.say(1, f"{who}: {self._what()}{failed}")
        attempt.after += 1
        world.point(attempt)
        if not attempt.after % PATIENT_OPERATIONS:
            world.tasks.sleep(0.001)


class Opened:
    """`with world.inbox() as inbox:` what is told goes to nobody after the block."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._inbox = Inbox(world)

    def __enter__(self) -> Inbox:
        self._local = self._world.task().home.local
        if self._local:  # those of instances go with them
            self._world.inboxes.add(self._inbox)
        return self._inbox

    def __exit__(self, *_: object) -> None:
        self._world.inboxes.discard(self._inbox)


def shown(answer: Any) -> str:
    """What an operation on a store gave, for people."""
    if isinstance(answer, (bytes, bytearray)):
        return repr(payload.loads(bytes(answer)))
    if isinstance(answer, (list, tuple)):
        return "[" + ", ".join(shown(one) for one in answer if one is not None) + "]"
    return repr(answer)
