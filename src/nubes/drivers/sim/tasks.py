"""Graphs of tasks in virtual time: nodes with queues, links that objects cross, schedulers that take their time."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from nubes.data.tasks import events as e
from nubes.data.tasks.controller import Tasks
from nubes.data.tasks.models import Hardware, Work
from nubes.data.tasks.seams import GLOBAL


class Node:
    """A simulated node: tasks that wait for inputs or a CPU, and when its links and its scheduler are free again."""

    def __init__(self, id: int, cpus: int) -> None:
        self.id = id
        self.free = cpus
        self.queue: deque[Any] = deque()  # Run and Restore, in the order in which they came
        self.held: dict[str, None] = {}
        self.busy: set[str] = set()  # actors that run a method
        self.coming: dict[str, float] = {}  # object -> when it will be here
        self.into_s = self.out_of_s = self.decided_s = 0.0
        self.alive = True
        self.told = (-1, -1)  # its last heartbeat


class Simulation:
    """Runs a controller against simulated hardware. `on_done(work, now)` may submit more."""

    def __init__(self, controller: Tasks, hardware: Hardware, on_done: Callable[[Work, float], None] | None = None):
        self.controller = controller
        self.hardware = hardware
        self.now = 0.0
        self.nodes = {id: Node(id, hardware.cpus) for id in range(1, hardware.nodes + 1)}
        self.works: dict[str, Work] = {}
        self.done_s: dict[str, float] = {}  # task -> when it first ended
        self.available: set[str] = set()  # what was waited for and came
        self.gone: set[str] = set()
        self.moved_bytes = 0
        self._on_done = on_done
        self._global_s = 0.0  # when the global scheduler is free again
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._open = 0  # tasks submitted that have not ended
        self._beats = False
        for node in self.nodes.values():
            self._handle(e.NodeReady(node.id, cpus=hardware.cpus))

    # -- what comes from outside -------------------------------------------------------------------------------------

    def put(self, object: str, node: int, size_bytes: int) -> None:
        """An object that is there from the beginning."""
        self.nodes[node].held[object] = None
        self._handle(e.Put(object, node, size_bytes))

    def submit(self, work: Work) -> None:
        self._open += 1
        self.works[work.task.id] = work
        self.at(work.at_s, partial(self._submit, work))

    def lose(self, at_s: float, node: int) -> None:
        """The node ends at that time, with all it holds."""
        self.at(at_s, partial(self._lose, node))

    def want(self, at_s: float, object: str) -> None:
        self.at(at_s, partial(self._want, object))

    def at(self, when_s: float, do: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._heap, (when_s, self._number, do))

    def run(self) -> float:
        """Until nothing happens any more. Returns when the last task ended, in seconds."""
        while self._heap:
            self.now, _, do = heapq.heappop(self._heap)
            do()
        return max(self.done_s.values(), default=0.0)

    # -- what happens --------------------------------------------------------------------------------------------------

    def _handle(self, event: Any) -> None:
        for command in self.controller.handle(event, self.now):
            self._do(command)

    def _submit(self, work: Work) -> None:
        self._handle(e.Submitted(work.task, work.node))
        self._beat()

    def _want(self, object: str) -> None:
        self._handle(e.Wanted(object))

    def _lose(self, id: int) -> None:
        self.nodes[id].alive = False
        self._handle(e.NodeLost(id))

    def _beat(self) -> None:
        """Heartbeats come as long as there is work."""
        if not self._beats:
            self._beats = True
            self.at(self.now + self.hardware.heartbeat_s, self._beat_now)

    def _beat_now(self) -> None:
        self._beats = False
        for node in self.nodes.values():
            view = self.controller.nodes.get(node.id)
            if view is not None and node.told != (state := (view.backlog, node.free)):
                node.told = state
                self._handle(e.Heartbeat(node.id, *state))
        if self._open > 0:
            self._beat()

    def _do(self, command: Any) -> None:
        if isinstance(command, e.Run):
            self.at(self._decided(command), partial(self._arrive, command))
        elif isinstance(command, e.Restore):
            self.at(self.now, partial(self._arrive, command))
        elif isinstance(command, e.Free):
            if command.node in self.nodes:
                self.nodes[command.node].held.pop(command.object, None)
        elif isinstance(command, e.Available):
            self.available.add(command.object)
        elif isinstance(command, e.Gone):
            self.gone.add(command.object)

    def _decided(self, run: e.Run) -> float:
        """When a decision has been taken, by a scheduler that takes one after the other."""
        if run.scheduler == GLOBAL:
            self._global_s = max(self.now, self._global_s) + self.hardware.global_decision_s
            return self._global_s + self.hardware.latency_s
        node = self.nodes[run.node]
        node.decided_s = max(self.now, node.decided_s) + self.hardware.local_decision_s
        return node.decided_s

    def _arrive(self, command: Any) -> None:
        node = self.nodes[command.node]
        if not node.alive:
            return
        ready_s = self.now
        if isinstance(command, e.Run):
            entry = self.controller.table.get(command.task)
            for input in entry.inputs if entry is not None else ():
                if input not in node.held:
                    ready_s = max(ready_s, self._fetch(input, node, command))
        node.queue.append((command, ready_s))
        if ready_s > self.now:
            self.at(ready_s, partial(self._start, node))
        self._start(node)

    def _fetch(self, object: str, node: Node, run: e.Run) -> float:
        """Begins to copy an object, unless that is under way. Returns when it will be there."""
        if object in node.coming:
            return node.coming[object]
        entry = self.controller.table[object]
        sources = [self.nodes[id] for id in entry.where if id in self.nodes and self.nodes[id].alive]
        if not sources:  # small enough to have come with the task, or gone, as `_start` will find
            return self.now
        source = min(sources, key=lambda one: one.out_of_s)
        begun = max(self.now, node.into_s, source.out_of_s)
        took = self.hardware.latency_s + entry.size_bytes / self.hardware.link_bytes_s
        node.into_s = source.out_of_s = node.coming[object] = begun + took
        self.at(begun + took, partial(self._copied, object, node, source, took))
        self.moved_bytes += entry.size_bytes
        return begun + took

    def _copied(self, object: str, node: Node, source: Node, took_s: float) -> None:
        node.coming.pop(object, None)
        if node.alive and source.alive and object in self.controller.table:
            node.held[object] = None
            self._handle(e.Copied(object, node.id, took_s))

    def _start(self, node: Node) -> None:
        """Starts what is ready, in order: an actor's methods do not pass each other."""
        while node.alive and node.free and node.queue:
            ready = (i for i, (_, at_s) in enumerate(node.queue) if at_s <= self.now and not self._behind(node, i))
            place = next(ready, -1)
            if place < 0:
                return
            command = node.queue[place][0]
            del node.queue[place]
            if isinstance(command, e.Run):
                self._begin(node, command)

    def _behind(self, node: Node, place: int) -> bool:
        actor = self._actor(node.queue[place][0])
        if not actor:
            return False
        return actor in node.busy or any(self._actor(node.queue[i][0]) == actor for i in range(place))

    def _actor(self, command: Any) -> str:
        return command.actor if isinstance(command, e.Restore) else self.works[command.task].task.actor

    def _begin(self, node: Node, run: e.Run) -> None:
        entry = self.controller.table.get(run.task)
        if entry is None or entry.attempt != run.attempt:
            return  # it was called off
        for input in entry.inputs:
            if input not in node.held and 0 not in self.controller.table[input].where:
                self._handle(e.InputMissing(run.task, run.attempt, node.id, input))
                return
        node.free -= 1
        node.busy.add(self._actor(run))
        self.at(self.now + self.works[run.task].run_s, partial(self._end, node, run))

    def _end(self, node: Node, run: e.Run) -> None:
        if not node.alive:
            return
        work = self.works[run.task]
        node.free += 1
        node.busy.discard(work.task.actor)
        first = run.task not in self.done_s
        self.done_s.setdefault(run.task, self.now)
        node.held[run.task] = None
        self._handle(e.Done(run.task, run.attempt, node.id, node.id, work.size_bytes, work.run_s))
        if first:
            self._open -= 1
            if self._on_done is not None:
                self._on_done(work, self.now)
        self._start(node)


def simulate(works: Iterable[Work], hardware: Hardware, placement: str) -> Simulation:
    """Runs `works` to their end under a placement policy."""
    simulation = Simulation(Tasks(placement), hardware)
    for work in works:
        simulation.submit(work)
    simulation.run()
    return simulation
