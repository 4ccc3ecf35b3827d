"""Ray: tasks stay on the node that submits them unless it is overloaded, or lacks what they need."""

from __future__ import annotations

from collections.abc import Mapping

from nubes.data.tasks.seams import GLOBAL, LOCAL, Choice, NodeView, TaskPlacement, TaskRequest
from nubes.kernel.policy import Paper, policy

PAPER = Paper("ray", "Ray", "Ray: A Distributed Framework for Emerging AI Applications", "OSDI 2018")


def queue_s(request: TaskRequest, node: NodeView) -> float:
    """How long a task would wait on `node` for those before it."""
    return node.queued * node.task_s / node.cpus


def wait_s(request: TaskRequest, node: NodeView) -> float:
    """How long it would wait there for those before it, and for its inputs."""
    return queue_s(request, node) + request.missing_bytes(node.id) / node.bandwidth


@policy("bottom-up", paper=PAPER)
class BottomUp(TaskPlacement):
    """A task stays where it is submitted up to `threshold` tasks a CPU; else it goes where it waits least.

    What a node lacks is a resource, or, beyond the paper's words, more than `fetch_bytes` of the task's inputs.
    """

    def __init__(self, threshold: int = 16, fetch_bytes: int = 1 << 20) -> None:
        self.threshold = threshold
        self.fetch_bytes = fetch_bytes

    def place(self, request: TaskRequest, nodes: Mapping[int, NodeView], now: float) -> Choice | None:
        home = nodes.get(request.origin)
        if home is not None and self.stays(request, home):
            return Choice(home.id, LOCAL)
        fitting = [node for node in nodes.values() if node.fits(request)]
        if not fitting:
            return None
        return Choice(min(fitting, key=lambda node: (self.cost_s(request, node), node.queued, node.id)).id, GLOBAL)

    def stays(self, request: TaskRequest, home: NodeView) -> bool:
        """The local scheduler's decision, from what it knows of itself."""
        return (
            home.load < self.threshold * home.cpus
            and home.fits(request)
            and request.missing_bytes(home.id) <= self.fetch_bytes
        )

    def cost_s(self, request: TaskRequest, node: NodeView) -> float:
        """What the global scheduler minimises."""
        return wait_s(request, node)

    def scores(
        self, question: str, request: TaskRequest, nodes: Mapping[int, NodeView], now: float
    ) -> list[tuple[str, float]]:
        """What `nubes why` shows of those that lost: how long the task would have waited there."""
        return [(f"node {node.id}", self.cost_s(request, node)) for node in nodes.values() if node.fits(request)]
