"""What happens to a graph of tasks, and what its controller wants done. Nodes are numbers, 0 the driver's."""

from __future__ import annotations

from nubes.data.tasks.spec import Task
from nubes.kernel.message import Command, Event


class NodeReady(Event, frozen=True):
    """A node that runs tasks. `has` is what it has beside CPUs, as in `Task.needs`."""

    node: int
    has: tuple[tuple[str, float], ...] = ()
    cpus: int = 1


class NodeLost(Event, frozen=True):
    """A node is gone with all it held and ran."""

    node: int


class Heartbeat(Event, frozen=True):
    """What a node's own scheduler says of itself: tasks in its queue, running ones included, and free CPUs.

    `blocked` are tasks that wait for objects and have given their CPU to others meanwhile; they are not in the queue.
    """

    node: int
    queued: int
    free: int
    blocked: int = 0


class Submitted(Event, frozen=True):
    """A task, from the node of whoever submits it, who holds a reference to its object from now on."""

    task: Task
    node: int


class Put(Event, frozen=True):
    """An object that no task made: it cannot be made again. Whoever put it holds a reference."""

    object: str
    node: int
    size_bytes: int


class Done(Event, frozen=True):
    """A task has ended; its object is on the node `holder`. `attempt` is that of the `Run` it answers."""

    task: str
    attempt: int
    node: int
    holder: int
    size_bytes: int
    run_s: float


class InputMissing(Event, frozen=True):
    """A task could not start: the object was not where it should have been."""

    task: str
    attempt: int
    node: int
    object: str


class Checkpointed(Event, frozen=True):
    """The state of an actor after that attempt of its method number `method` is in safe hands."""

    actor: str
    method: int
    attempt: int


class Copied(Event, frozen=True):
    """An object has reached another node."""

    object: str
    node: int
    took_s: float


class ObjectLost(Event, frozen=True):
    """A node has an object no more, damaged or evicted."""

    object: str
    node: int


class Wanted(Event, frozen=True):
    """Somebody waits for an object: `Available` or `Gone` answers once."""

    object: str


class Pinned(Event, frozen=True):
    """A reference has gone where it cannot be followed: the object is kept until the end."""

    object: str


class Released(Event, frozen=True):
    """A reference is gone."""

    object: str


class Run(Command, frozen=True):
    """Run a task on a node behind all it was told to run before. `scheduler` took the decision: local or global.

    `method` is the number of an actor's method, 0 for the call that makes the actor.
    """

    task: str
    attempt: int
    node: int
    scheduler: str
    method: int = 0


class Restore(Command, frozen=True):
    """Make an actor on a node, behind all it was told before, from its checkpoint after method number `method`."""

    actor: str
    node: int
    method: int


class Stop(Command, frozen=True):
    """An actor that nobody can reach any more."""

    actor: str
    node: int


class Free(Command, frozen=True):
    """Nobody needs this object on this node."""

    object: str
    node: int


class ForgetCheckpoint(Command, frozen=True):
    """Nothing will be restored from it."""

    actor: str
    method: int


class Forget(Command, frozen=True):
    """Nothing of a task, or of an object that was put, is needed any more."""

    task: str


class Available(Command, frozen=True):
    """An object that somebody waits for is there."""

    object: str


class Gone(Command, frozen=True):
    """An object that somebody waits for is not there and cannot be made again."""

    object: str


EVENTS = (
    NodeReady, NodeLost, Heartbeat, Submitted, Put, Done, InputMissing, Checkpointed, Copied, ObjectLost, Wanted,
    Pinned, Released,
)  # fmt: skip
