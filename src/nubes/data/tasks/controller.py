"""The controller of task graphs: places what is ready, and makes again from its lineage what is lost and needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import Any

from nubes.data.tasks import events as e
from nubes.data.tasks.actors import Actors
from nubes.data.tasks.seams import SMOOTHING, Choice, TaskPlacement, TaskRequest
from nubes.data.tasks.state import Entry, Node, Phase
from nubes.kernel.policy import make


class Tasks(Actors):
    """A plain state machine: events in, commands out; the same events give the same commands.

    Tasks must be deterministic, and actors' methods too, given their state: whatever is lost runs again. Nodes whose
    queues last longer than `ahead_s` are sent nothing more. `rerun` counts tasks that ran again after they had ended.
    """

    def __init__(self, placement: str | TaskPlacement | None = None, ahead_s: float = inf) -> None:
        super().__init__()
        self.ahead_s = ahead_s
        self.placement: TaskPlacement = make("task-placement", placement)
        self.now = 0.0
        self.rerun = 0
        self._handlers: dict[type, Callable[[Any], None]] = {
            e.NodeReady: self._node_ready,
            e.NodeLost: self._node_lost,
            e.Heartbeat: self._heartbeat,
            e.Submitted: self._submitted,
            e.Put: self._put,
            e.Done: self._done,
            e.InputMissing: self._input_missing,
            e.Checkpointed: self._checkpointed,
            e.Copied: self._copied,
            e.ObjectLost: self._object_lost,
            e.Wanted: self._wanted,
            e.Pinned: self._pinned,
            e.Released: self._released,
        }

    def handle(self, event: Any, now: float) -> list[Any]:
        """What is to be done about `event`."""
        self.now = now
        self._out = []
        self._handlers[type(event)](event)
        while self._quiet:
            self._quiet = False
            self._retire()
        if self._room and self.unplaced:
            self._retry()
        self._room = False
        return self._out

    # -- nodes -----------------------------------------------------------------------------------------------------

    def _node_ready(self, event: e.NodeReady) -> None:
        self.nodes[event.node] = Node(event.node, dict(event.has), event.cpus)
        self._room = True

    def _retry(self) -> None:
        """Tries those for which there was no node, of those that need the same the first, and so on."""
        for waiting in list(self.unplaced.values()):
            while waiting:
                id = next(iter(waiting))
                self._ready(self.table[id])
                if id in waiting:
                    break

    def _node_lost(self, event: e.NodeLost) -> None:
        node = self.nodes.pop(event.node, None)
        if node is None:
            return
        lost = [self.table[id] for id in node.objects]
        again = [entry.id for entry in lost if self._unlocate(entry, node.id)]
        back = [self.table[id] for id in node.sent]
        for entry in back:
            again += self._wait(entry)
        for id in node.actors:
            actor = self.actors[id]
            actor.node = -1
            again += self._rewind(actor)
        self._need(again)
        self._all_ready(entry for entry in back if not entry.missing)
        for id in node.actors:
            self._advance(self.actors[id])
        for entry in lost:
            self._settle(entry.id)

    def _heartbeat(self, event: e.Heartbeat) -> None:
        node = self.nodes.get(event.node)
        if node is not None:
            node.free, node.blocked = event.free, event.blocked
            node.queued = min(event.queued, node.load)  # some may have ended since it said so
            self._room = True

    # -- tasks -----------------------------------------------------------------------------------------------------

    def _submitted(self, event: e.Submitted) -> None:
        task = event.task
        entry = self.table.get(task.id)
        if entry is not None:  # by a task that runs again
            self._held_by_parent(entry)
            return
        entry = self._create(task.id, task, event.node)
        self._held_by_parent(entry)
        if task.actor and not self._join(entry):
            entry.phase = Phase.ENDED
            return
        missing = self._activate(entry)
        self._need(missing)
        if not entry.missing:
            self._ready(entry)

    def _put(self, event: e.Put) -> None:
        entry = self._create(event.object, None, event.node)
        entry.refs += 1
        self._locate(entry, event.node, event.size_bytes)

    def _all_ready(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._ready(entry)

    def _ready(self, entry: Entry) -> None:
        """All inputs are there: an actor's method waits for its turn, anything else for a node."""
        if entry.phase is not Phase.WAITING or entry.missing:
            return
        actor = self._actor_of(entry)
        if actor is not None:
            self._advance(actor)
            return
        assert entry.task is not None
        choice = self._choose(entry, entry.task.needs)
        if choice is None:
            self._park(entry, entry.task.needs)
        else:
            self._send(entry, choice.node, choice.scheduler)

    def _choose(self, entry: Entry, needs: tuple[tuple[str, float], ...]) -> Choice | None:
        assert entry.task is not None
        near: dict[int, int] = {}
        total = 0
        for input in entry.inputs:
            read = self.table[input]
            total += read.size_bytes
            for node in read.where:
                near[node] = near.get(node, 0) + read.size_bytes
        request = TaskRequest(entry.task.kind, entry.origin, needs, total, near)
        nodes = self.nodes if self.ahead_s == inf else {n.id: n for n in self.nodes.values() if self._has_room(n)}
        return self.placement.place(request, nodes, self.now)

    def _has_room(self, node: Node) -> bool:
        """Whether a node would run out of tasks soon; two a CPU are never too many."""
        return node.load < 2 * node.cpus or 0.0 < node.load * node.task_s < self.ahead_s * node.cpus

    def _send(self, entry: Entry, node: int, scheduler: str) -> None:
        self._unpark(entry)
        for input in entry.inputs:
            self.table[input].waiting.pop(entry.id, None)
        entry.phase, entry.node = Phase.SENT, node
        entry.attempt += 1
        to = self.nodes[node]
        to.sent[entry.id] = None
        to.backlog += 1
        to.queued += 1
        self._out.append(e.Run(entry.id, entry.attempt, node, scheduler, max(entry.method, 0)))

    def counts(self, task: str, attempt: int, node: int) -> bool:
        """Whether an attempt is still expected to end."""
        entry = self.table.get(task)
        return entry is not None and entry.phase is Phase.SENT and (entry.attempt, entry.node) == (attempt, node)

    def _running(self, event: e.Done | e.InputMissing) -> Entry | None:
        """The entry of an attempt that still counts."""
        if not self.counts(event.task, event.attempt, event.node):
            return None
        entry = self.table[event.task]
        self._unsend(entry)
        return entry

    def _done(self, event: e.Done) -> None:
        entry = self._running(event)
        if entry is None:
            return
        node = self.nodes[event.node]
        node.queued = min(node.queued, node.load)
        node.task_s += (event.run_s - node.task_s) * (SMOOTHING if node.task_s else 1.0)
        actor = self._actor_of(entry)
        if actor is not None:
            actor.reached = max(actor.reached, entry.method)
        complete = self._locate(entry, event.holder, event.size_bytes)
        self._end(entry)
        self._all_ready(complete)
        self._settle(entry.id)

    def _input_missing(self, event: e.InputMissing) -> None:
        entry = self._running(event)
        if entry is None:
            return
        missing = self._wait(entry)
        actor = self._actor_of(entry)
        if actor is not None:  # those behind it have run without it
            missing += self._rewind(actor)
        self._need(missing)
        self._ready(entry)
        if actor is not None:
            self._advance(actor)

    # -- objects ---------------------------------------------------------------------------------------------------

    def _copied(self, event: e.Copied) -> None:
        entry, node = self.table.get(event.object), self.nodes.get(event.node)
        if node is None:
            return
        if entry is None or not entry.where:
            self._out.append(e.Free(event.object, event.node))
            return
        self._locate(entry, event.node, entry.size_bytes)
        if event.took_s > 0:
            node.bandwidth += SMOOTHING * (entry.size_bytes / event.took_s - node.bandwidth)

    def _object_lost(self, event: e.ObjectLost) -> None:
        entry = self.table.get(event.object)
        if entry is not None:
            if self._unlocate(entry, event.node):
                self._need([entry.id])
            self._settle(entry.id)

    def _wanted(self, event: e.Wanted) -> None:
        entry = self.table.get(event.object)
        if entry is None:
            self._out.append(e.Gone(event.object))
        elif entry.where:
            self._out.append(e.Available(event.object))
        else:
            entry.wanted = True
            self._need([entry.id])

    def _pinned(self, event: e.Pinned) -> None:
        entry = self.table.get(event.object)
        if entry is not None:
            entry.refs += 1

    def _released(self, event: e.Released) -> None:
        entry = self.table.get(event.object)
        if entry is not None:
            entry.refs -= 1
            self._settle(entry.id)

    # -- lineage ---------------------------------------------------------------------------------------------------

    def _need(self, ids: list[str]) -> None:
        """Has every one of these objects made that is nowhere and not being made, and what that needs, and so on."""
        stack = ids[::-1]
        while stack:
            entry = self.table.get(stack.pop())
            if entry is None or entry.where or entry.phase is not Phase.ENDED:
                continue
            actor = self._actor_of(entry)
            if entry.task is None or (entry.task.actor and (actor is None or entry.method not in actor.methods)):
                self._gone(entry)
                continue
            self.rerun += 1
            if actor is None:
                missing = self._activate(entry)
                self._ready(entry)
            else:
                missing = self._rewind(actor, entry.method)
                self._advance(actor)
            stack += missing[::-1]

    def _gone(self, entry: Entry) -> None:
        """It cannot be made again, and nothing that is waiting for it can run."""
        stack = [entry]
        while stack:
            entry = stack.pop()
            if entry.wanted:
                entry.wanted = False
                self._out.append(e.Gone(entry.id))
            for reader in list(entry.waiting):
                ended = self.table[reader]
                self._end(ended)
                stack.append(ended)
                actor = self._actor_of(ended)
                if actor is not None:
                    self._advance(actor)
            self._settle(entry.id)
