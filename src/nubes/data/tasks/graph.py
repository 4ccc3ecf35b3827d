"""The table of tasks and objects, and how long each of them is kept.

An object is kept while somebody holds a reference to it, waits for it, or is a task that reads it and has not ended;
one that was put, which cannot be made again, as long as any task that may have to read it again.
A task is kept, as lineage, while its object is, or that of any task that read it. What a task submitted is kept as
long as the task itself, which would ask for the same again.
"""

from __future__ import annotations

from typing import Any

from nubes.data.tasks import events as e
from nubes.data.tasks.spec import Task
from nubes.data.tasks.state import Actor, Entry, Node, Phase

Needs = tuple[tuple[str, float], ...]


class Graph:
    """Entries by id, nodes and actors; `_out` collects commands."""

    def __init__(self) -> None:
        self.table: dict[str, Entry] = {}
        self.nodes: dict[int, Node] = {}
        self.actors: dict[str, Actor] = {}
        self.unplaced: dict[Needs, dict[str, None]] = {}  # tasks for which there is no node yet, by what they need
        self._out: list[Any] = []
        self._unreachable: dict[str, None] = {}  # actors to be stopped once nobody needs their results
        self._quiet = False  # whether that may be now
        self._room = False  # whether a node may have room for those that are unplaced

    def _create(self, id: str, task: Task | None, origin: int) -> Entry:
        entry = self.table[id] = Entry(id, task, origin)
        for input in entry.inputs:
            if input not in self.table:  # somebody let go of it too early: it is like one that is lost
                self.table[input] = Entry(input, None, origin)
            self.table[input].heirs += 1
        return entry

    def _held_by_parent(self, entry: Entry) -> None:
        """Who submits a task holds a reference to it: a task does until it is dropped itself."""
        parent = self.table.get(entry.task.parent) if entry.task is not None and entry.task.parent else None
        if parent is None:
            entry.refs += 1
        elif entry.id not in parent.children:
            parent.children[entry.id] = None
            entry.refs += 1

    # -- where objects are -----------------------------------------------------------------------------------------

    def _locate(self, entry: Entry, node: int, size_bytes: int) -> list[Entry]:
        """The object is on a node. Returns the tasks that have all of their inputs by that."""
        entry.where[node] = None
        entry.size_bytes = size_bytes
        if node in self.nodes:
            self.nodes[node].objects[entry.id] = None
        if entry.wanted:
            entry.wanted = False
            self._out.append(e.Available(entry.id))
        complete = []
        for reader in map(self.table.__getitem__, entry.waiting):
            if entry.id in reader.missing:
                del reader.missing[entry.id]
                if not reader.missing:
                    complete.append(reader)
        return complete

    def _unlocate(self, entry: Entry, node: int) -> bool:
        """The object is not on that node any more. Returns whether it has to be made again."""
        if node not in entry.where:
            return False
        del entry.where[node]
        if node in self.nodes:
            self.nodes[node].objects.pop(entry.id, None)
        if entry.where:
            return False
        for reader in entry.waiting:
            self.table[reader].missing[entry.id] = None
            self._unpark(self.table[reader])
        return entry.wanted or bool(entry.waiting)

    # -- what tasks read -------------------------------------------------------------------------------------------

    def _wait(self, entry: Entry) -> list[str]:
        """The task waits for its inputs. Returns those that are nowhere."""
        entry.phase = Phase.WAITING
        for input in entry.inputs:
            read = self.table[input]
            read.waiting[entry.id] = None
            if not read.where:
                entry.missing[input] = None
        return list(entry.missing)

    def _activate(self, entry: Entry) -> list[str]:
        """The task is to run, for the first time or again. Returns the inputs that are nowhere."""
        for input in entry.inputs:
            self.table[input].users += 1
        return self._wait(entry)

    def _end(self, entry: Entry) -> None:
        """The task will not run, or not again for now: its inputs may go."""
        entry.phase = Phase.ENDED
        entry.missing.clear()
        self._unpark(entry)
        for input in entry.inputs:
            read = self.table[input]
            read.waiting.pop(entry.id, None)
            read.users -= 1
            self._settle(input)

    def _park(self, entry: Entry, needs: Needs) -> None:
        entry.parked = needs
        self.unplaced.setdefault(needs, {})[entry.id] = None

    def _unpark(self, entry: Entry) -> None:
        if entry.parked is not None:
            del self.unplaced[entry.parked][entry.id]
            if not self.unplaced[entry.parked]:
                del self.unplaced[entry.parked]
            entry.parked = None

    def _unsend(self, entry: Entry) -> None:
        """Its node is no longer expected to run it."""
        node = self.nodes.get(entry.node)
        if node is not None and entry.id in node.sent:
            del node.sent[entry.id]
            node.backlog -= 1
            self._room = True

    # -- letting go ------------------------------------------------------------------------------------------------

    def _settle(self, id: str) -> None:
        """Lets go of an object that nobody needs, and of its lineage, and so on backwards."""
        stack = [id]
        while stack:
            entry = self.table.get(stack.pop())
            if entry is None:
                continue
            if entry.method == 0 and not entry.refs and entry.id in self.actors:
                self._unreachable[entry.id] = None
            self._quiet = self._quiet or bool(self._unreachable)
            if entry.phase is not Phase.ENDED or entry.refs or entry.users or entry.wanted:
                continue
            if entry.task is None and entry.heirs:
                continue  # what was put cannot be made again
            for node in entry.where:
                self._out.append(e.Free(entry.id, node))
                if node in self.nodes:
                    self.nodes[node].objects.pop(entry.id, None)
            entry.where.clear()
            if entry.heirs or entry.actor_holds:
                continue
            del self.table[entry.id]
            self._out.append(e.Forget(entry.id))
            for input in entry.inputs:
                self.table[input].heirs -= 1
                stack.append(input)
            for child in entry.children:
                self.table[child].refs -= 1
                stack.append(child)
