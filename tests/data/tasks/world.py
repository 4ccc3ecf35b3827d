"""Nodes that compute for real, in one thread, in any order: what a controller's commands come to."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from math import inf

from nubes.data.tasks import events as e
from nubes.data.tasks.controller import Tasks
from nubes.data.tasks.spec import Task
from nubes.data.tasks.state import Phase


def value_of(task: Task, inputs: list[int], state: int | None) -> int:
    """What a task computes: any change of an input, of their order or of an actor's state changes it."""
    return hash((task.kind, tuple(inputs), state)) % 1_000_003


def plain_loop(tasks: list[Task]) -> dict[str, int]:
    """The results of running the tasks one after the other."""
    values: dict[str, int] = {}
    states: dict[str, int] = {}
    for task in tasks:
        values[task.id] = value_of(task, [values[i] for i in task.inputs], states.get(task.actor))
        if task.actor:
            states[task.actor] = values[task.id]
    return values


class World:
    """`checkpoint_every` methods an actor's state is kept outside of its node."""

    def __init__(self, placement=None, nodes: int = 2, checkpoint_every: int = 0, ahead_s: float = inf) -> None:
        self.controller = Tasks(placement, ahead_s)
        self.every = checkpoint_every
        self.queues: dict[int, deque] = {}
        self.stores: dict[int, dict[str, int]] = {0: {}}
        self.states: dict[tuple[int, str], int | None] = {}
        self.kept: dict[tuple[str, int], int | None] = {}
        self.tasks: dict[str, Task] = {}
        self.available: set[str] = set()
        self.gone: set[str] = set()
        self.on_run: Callable[[Task], None] = lambda task: None  # submits what a task submits
        self.now = 0.0
        for _ in range(nodes):
            self.join()

    def handle(self, event) -> None:
        self.now += 1.0
        for command in self.controller.handle(event, self.now):
            self.do(command)
        check(self.controller)

    def do(self, command) -> None:
        match command:
            case e.Run() | e.Restore() | e.Stop():
                self.queues[command.node].append(command)
            case e.Free(object, node):
                del self.stores[node][object]
            case e.Available(object):
                assert object not in self.available
                self.available.add(object)
            case e.Gone(object):
                self.gone.add(object)
            case e.ForgetCheckpoint(actor, method):
                del self.kept[actor, method]
            case e.Forget(task):
                assert task not in self.controller.table

    def join(self, **has: float) -> int:
        node = max(self.stores) + 1
        self.queues[node], self.stores[node] = deque(), {}
        self.handle(e.NodeReady(node, tuple(has.items())))
        return node

    def lose(self, node: int) -> None:
        del self.queues[node], self.stores[node]
        self.states = {key: state for key, state in self.states.items() if key[0] != node}
        self.handle(e.NodeLost(node))

    def submit(self, task: Task, node: int = 0) -> None:
        self.tasks[task.id] = task
        self.handle(e.Submitted(task, node))

    def step(self, node: int) -> None:
        """The node takes what is first in its queue."""
        command = self.queues[node].popleft()
        if isinstance(command, e.Stop):
            self.states.pop((node, command.actor), None)
        elif isinstance(command, e.Restore):
            self.states[node, command.actor] = self.kept[command.actor, command.method]
        else:
            self.run(node, command)

    def run(self, node: int, run: e.Run) -> None:
        task, entry = self.tasks[run.task], self.controller.table.get(run.task)
        if entry is None or entry.attempt != run.attempt or entry.phase is not Phase.SENT:
            return
        self.on_run(task)
        values = []
        for input in task.inputs:
            where = self.controller.table[input].where
            if not where:
                self.handle(e.InputMissing(task.id, run.attempt, node, input))
                return
            values.append(self.stores[next(iter(where))][input])
        key = (node, task.actor)
        state = self.states[key] if task.actor and run.method else None
        result = value_of(task, values, state)
        if task.actor:
            self.states[key] = result
        self.stores[node][task.id] = result
        self.handle(e.Done(task.id, run.attempt, node, node, 100, 1.0))
        if task.actor and self.every and run.method and run.method % self.every == 0:
            kept = dict(self.kept)
            self.kept[task.actor, run.method] = result
            self.handle(e.Checkpointed(task.actor, run.method, run.attempt))
            actor = self.controller.actors.get(task.actor)
            if actor is None or run.method not in actor.checkpoints:
                self.kept = kept

    def run_on(self, draw: random.Random | None = None, steps: int = 10**9) -> int:
        """Steps nodes (by chance, else in turn) until nothing is left to do; returns how many steps that took."""
        for taken in range(steps):
            busy = [node for node, queue in self.queues.items() if queue]
            if not busy:
                return taken
            self.step(draw.choice(busy) if draw is not None else busy[0])
        return steps

    def get(self, id: str, draw: random.Random | None = None) -> int:
        self.available.discard(id)
        self.handle(e.Wanted(id))
        self.run_on(draw)
        assert id in self.available, f"{id} did not come"
        return self.stores[next(iter(self.controller.table[id].where))][id]


def check(controller: Tasks) -> None:
    """What must hold after every event."""
    table = controller.table
    users: dict[str, int] = {}
    heirs: dict[str, int] = {}
    for id, entry in table.items():
        assert entry.id == id
        assert min(entry.refs, entry.users, entry.heirs) >= 0
        for input in entry.inputs:
            heirs[input] = heirs.get(input, 0) + 1
            if entry.phase is not Phase.ENDED:
                users[input] = users.get(input, 0) + 1
            assert (id in table[input].waiting) == (entry.phase is Phase.WAITING)
        expected = [i for i in entry.inputs if not table[i].where] if entry.phase is Phase.WAITING else []
        assert sorted(entry.missing) == sorted(expected)
        assert (entry.parked is not None) <= (entry.phase is Phase.WAITING and not entry.missing)
        if entry.phase is Phase.SENT:
            assert id in controller.nodes[entry.node].sent
        if entry.phase is Phase.WAITING and not entry.missing and not entry.task.actor:
            assert id in controller.unplaced[entry.parked], "ready, and not sent"
        for node in entry.where:
            assert node == 0 or id in controller.nodes[node].objects
        if entry.phase is Phase.ENDED and not (entry.needed or entry.actor_holds):
            raise AssertionError(f"{id} is kept, and nobody needs it")
        if entry.missing:
            assert all(table[i].phase is not Phase.ENDED for i in entry.missing), "waits for what nobody makes"
    for id, entry in table.items():
        assert (entry.users, entry.heirs) == (users.get(id, 0), heirs.get(id, 0))
    for node in controller.nodes.values():
        assert node.backlog == len(node.sent)
        assert all(table[id].phase is Phase.SENT and table[id].node == node.id for id in node.sent)
        assert all(node.id in table[id].where for id in node.objects)
        assert all(controller.actors[id].node == node.id for id in node.actors)
    for actor in controller.actors.values():
        assert all(table[id].actor_holds and table[id].method == m for m, id in actor.methods.items())
        assert sorted(actor.methods) == list(range(actor.held_from, actor.count))
        assert actor.checkpoints[0] == actor.held_from - 1
