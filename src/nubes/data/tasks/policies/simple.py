"""Task placement by one idea each: what bottom-up scheduling is compared with."""

from __future__ import annotations

from collections.abc import Mapping

from nubes.data.tasks.policies.ray import BottomUp, queue_s
from nubes.data.tasks.seams import GLOBAL, Choice, NodeView, TaskPlacement, TaskRequest
from nubes.kernel.policy import policy
from nubes.kernel.rng import rng


@policy("central")
class Central(BottomUp):
    """One scheduler sees every task and sends it where it waits least, inputs counted."""

    def __init__(self) -> None:
        super().__init__(threshold=0)


@policy("locality-blind")
class LocalityBlind(BottomUp):
    """Bottom-up, but wherever the inputs are: only queues count."""

    def stays(self, request: TaskRequest, home: NodeView) -> bool:
        return home.load < self.threshold * home.cpus and home.fits(request)

    def cost_s(self, request: TaskRequest, node: NodeView) -> float:
        return queue_s(request, node)


@policy("random")
class Random(TaskPlacement):
    """Any node that fits, by chance."""

    def __init__(self, seed: int = 0) -> None:
        self._draw = rng(seed, "task-placement")

    def place(self, request: TaskRequest, nodes: Mapping[int, NodeView], now: float) -> Choice | None:
        fitting = [node.id for node in nodes.values() if node.fits(request)]
        return Choice(self._draw.choice(fitting), GLOBAL) if fitting else None
