"""TaskControl's answers: what an application can bear of updates, moves and maintenance, in one word."""

from __future__ import annotations

from collections.abc import Sequence

from nubes.cluster.seams import Disruption, Operation, TaskView
from nubes.kernel.errors import UsageError
from nubes.kernel.policy import Paper, policy

PAPER = Paper("twine", "Twine", "Twine: A Unified Cluster Management System for Shared Infrastructure", "OSDI 2020")


@policy("at-once")
class AtOnce(Disruption):
    """Everything at once: for what keeps nothing and is quickly there again."""


def _ordered(pending: Sequence[Operation], tasks: Sequence[TaskView]) -> list[tuple[Operation, TaskView]]:
    """What may be begun, in order: tasks that are down anyway first, leaders last. Unknown tasks bear anything."""
    known = {task.name: task for task in tasks}
    pairs = [(operation, known.get(operation.task, TaskView(operation.task, False))) for operation in pending]
    return sorted(pairs, key=lambda pair: (pair[1].healthy, pair[1].leader, pair[0].deadline_s, pair[0].id))


def _up(running: Sequence[Operation], tasks: Sequence[TaskView]) -> dict[str, TaskView]:
    """The tasks that are up and stay so, as far as is known."""
    busy = {operation.task for operation in running}
    return {task.name: task for task in tasks if task.healthy and task.name not in busy}


@policy("one-by-one", paper=PAPER)
class OneByOne(Disruption):
    """One task at a time, and only while all others are up; the leader last."""

    def allow(
        self, pending: Sequence[Operation], running: Sequence[Operation], tasks: Sequence[TaskView], now: float
    ) -> list[int]:
        busy = {operation.task for operation in running}
        down = {task.name for task in tasks if not task.healthy} | busy
        for operation, _ in _ordered(pending, tasks):
            if operation.task not in busy and down <= {operation.task}:
                return [operation.id]
        return []


@policy("quorum", paper=PAPER)
class Quorum(Disruption):
    """As many at once as leave `up` tasks up (0: more than half of them); the leader last."""

    def __init__(self, up: int = 0) -> None:
        if up < 0:
            raise UsageError(f"quorum(up={up}) is no number of tasks.", "Say how many must stay up, or 0: a majority.")
        self.up = up

    def allow(
        self, pending: Sequence[Operation], running: Sequence[Operation], tasks: Sequence[TaskView], now: float
    ) -> list[int]:
        spare = len(_up(running, tasks)) - (self.up or len(tasks) // 2 + 1)
        busy = {operation.task for operation in running}
        allowed = []
        for operation, task in _ordered(pending, tasks):
            if operation.task not in busy and (not task.healthy or spare > 0):
                allowed.append(operation.id)
                busy.add(operation.task)
                spare -= task.healthy
        return allowed


@policy("shards", paper=PAPER)
class Shards(Disruption):
    """As many at once as leave every shard all but one of its replicas."""

    shards = True

    def allow(
        self, pending: Sequence[Operation], running: Sequence[Operation], tasks: Sequence[TaskView], now: float
    ) -> list[int]:
        up = _up(running, tasks)
        short = {shard for task in tasks if task.name not in up for shard in task.shards}
        busy = {operation.task for operation in running}
        allowed = []
        for operation, task in _ordered(pending, tasks):
            if operation.task not in busy and (task.name not in up or not task.shards & short):
                allowed.append(operation.id)
                busy.add(operation.task)
                short |= task.shards
        return allowed


@policy("app", paper=PAPER)
class App(Disruption):
    """The application says itself: a method of its class gets what is pending and what runs, and returns the ids of
    what may begin."""

    def __init__(self, method: str = "may_go") -> None:
        if not method:
            raise UsageError("app(method=) names no method.", "Write that of the class which is to be asked.")
        self.method = method

    def allow(
        self, pending: Sequence[Operation], running: Sequence[Operation], tasks: Sequence[TaskView], now: float
    ) -> list[int]:
        """Nothing, until the application has answered."""
        return []
