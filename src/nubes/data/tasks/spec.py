"""A graph of tasks as plain data: each task makes one object, and both have the same id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

DRIVER = 0  # the node of whoever submits from outside; it holds small results and is never lost


class Task(msgspec.Struct, frozen=True, array_like=True):
    """A call of a function, of a class (which makes an actor), or of an actor's method.

    Ids say who submitted what: the third task that task "7" submits is "7.3". So a task that runs again submits the
    same tasks again. An actor has the id of the task that made it, whose object nobody reads.
    """

    id: str
    kind: str  # the function: tasks of one kind take alike
    inputs: tuple[str, ...] = ()  # objects it needs on its node before it starts
    needs: tuple[tuple[str, float], ...] = ()  # what its node must have beside a CPU: (("gpu", 1.0),)
    actor: str = ""  # the actor whose state it reads and writes; "": none

    @property
    def parent(self) -> str:
        """The task that submitted it; "": the driver."""
        return self.id.rpartition(".")[0]


class Edge(msgspec.Struct, frozen=True):
    """`kind` is data (an object and the task that reads it), control (caller and called) or state (methods in turn)."""

    kind: str
    source: str
    target: str


def edges(tasks: Iterable[Task]) -> Iterator[Edge]:
    """The edges of a graph whose tasks are in the order in which they were submitted."""
    before: dict[str, str] = {}
    for task in tasks:
        yield from (Edge("data", source, task.id) for source in task.inputs)
        if task.parent:
            yield Edge("control", task.parent, task.id)
        if task.actor:
            if task.actor in before:
                yield Edge("state", before[task.actor], task.id)
            before[task.actor] = task.id
