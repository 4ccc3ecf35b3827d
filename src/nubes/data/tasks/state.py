"""What the controller knows: the table of tasks and objects, actors, and nodes."""

from __future__ import annotations

from enum import Enum

from nubes.data.tasks.seams import NodeView
from nubes.data.tasks.spec import Task


class Phase(Enum):
    """Of a task. An object that was put is one of a task that has ended."""

    WAITING = 0  # for its inputs, for a node, or for its turn
    SENT = 1
    ENDED = 2


class Entry:
    """A task and its object, which have one id; `task` is None for an object that was put."""

    __slots__ = (
        "actor_holds", "attempt", "children", "heirs", "id", "inputs", "method", "missing", "node", "origin",
        "parked", "phase", "refs", "size_bytes", "task", "users", "waiting", "wanted", "where",
    )  # fmt: skip

    def __init__(self, id: str, task: Task | None, origin: int) -> None:
        self.id = id
        self.task = task
        self.inputs = tuple(dict.fromkeys(task.inputs)) if task is not None else ()
        self.origin = origin
        self.phase = Phase.WAITING if task is not None else Phase.ENDED
        self.where: dict[int, None] = {}  # nodes that have the object, in the order in which they got it
        self.size_bytes = 0
        self.missing: dict[str, None] = {}  # inputs that are nowhere
        self.node = -1  # where the task was sent
        self.parked: tuple[tuple[str, float], ...] | None = None  # what it needs, if there is no node for it yet
        self.attempt = 0  # how often it was sent
        self.method = -1  # its number among its actor's
        self.refs = 0  # references that somebody holds
        self.users = 0  # tasks that read it and have not ended
        self.heirs = 0  # tasks that read it and may have to run again
        self.actor_holds = False  # its actor may have to run it again
        self.waiting: dict[str, None] = {}  # tasks that read it and were not sent
        self.wanted = False  # somebody waits for the object
        self.children: dict[str, None] = {}  # tasks that it submitted: it holds references to them

    @property
    def needed(self) -> bool:
        """Whether somebody may still read the object."""
        return bool(self.refs or self.users or self.heirs or self.wanted)


class Node(NodeView):
    """A node as the controller knows it: what policies see of it, and what is lost with it."""

    __slots__ = ("actors", "objects", "sent")

    def __init__(self, id: int, has: dict[str, float], cpus: int) -> None:
        super().__init__(id, has, cpus)
        self.sent: dict[str, None] = {}
        self.objects: dict[str, None] = {}
        self.actors: dict[str, None] = {}


class Actor:
    """An actor's methods by number, of which those after its oldest kept checkpoint can be run again."""

    __slots__ = ("checkpoints", "count", "held_from", "id", "methods", "needs", "next", "node", "reached", "restore")

    def __init__(self, id: str, needs: tuple[tuple[str, float], ...]) -> None:
        self.id = id
        self.needs = needs
        self.node = -1
        self.methods: dict[int, str] = {}  # number -> task; 0 makes the actor
        self.count = 0  # methods submitted so far
        self.next = 0  # the one to be sent next
        self.reached = -1  # the last that ever ended
        self.checkpoints: list[int] = [-1]  # -1: from nothing
        self.held_from = 0  # methods from this one on are held
        self.restore = False  # its next life begins with a checkpoint
