"""What the tasks of the day that is being played see of time and chance."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from nubes.kernel.rng import rng
from nubes.storm import senses
from nubes.storm.attempts import Attempt, chance_of
from nubes.storm.tasks import Tasks

if TYPE_CHECKING:
    from nubes.storm.world import World


class Present(senses.Senses):
    """Of the world of this moment; there is one at a time."""

    world: World | None = None

    @staticmethod
    def _attempt() -> tuple[World, Attempt | None] | None:
        world = Present.world
        task = world.tasks.here() if world is not None else None
        return (world, task.about) if world is not None and task is not None else None

    def wall(self) -> float | None:
        seen = self._attempt()
        return seen and seen[0].tasks.now + seen[0].stepped_s

    def monotonic(self) -> float | None:
        seen = self._attempt()
        return seen and seen[0].tasks.now - seen[0].began_s

    def sleep(self, seconds: float) -> bool:
        seen = self._attempt()
        if seen is None:
            return False
        seen[0].tasks.sleep(seconds)
        return True

    def chance(self) -> random.Random | None:
        seen = self._attempt()
        if seen is None:
            return None
        world, attempt = seen
        if attempt is None:
            return rng(world.seed)
        if attempt.chance is None:
            attempt.chance = chance_of(world.seed, attempt)
        return attempt.chance

    def bytes(self, count: int) -> bytes | None:
        chance = self.chance()
        return None if chance is None else chance.randbytes(count)


def tasks_of_now() -> Tasks | None:
    """The tasks of the world of this moment, if it is one of them that asks."""
    world = Present.world
    return world.tasks if world is not None and world.tasks.here() is not None else None
