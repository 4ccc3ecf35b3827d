"""Actors: their methods in turn, on one node; after a loss, from a checkpoint and the methods since."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from nubes.data.tasks import events as e
from nubes.data.tasks.graph import Graph
from nubes.data.tasks.seams import LOCAL, Choice
from nubes.data.tasks.state import Actor, Entry, Phase


class Actors(Graph):
    """The part of the controller that knows of actors. `replayed` counts methods sent again after they had ended."""

    replayed = 0

    def _choose(self, entry: Entry, needs: tuple[tuple[str, float], ...]) -> Choice | None:
        raise NotImplementedError

    def _send(self, entry: Entry, node: int, scheduler: str) -> None:
        raise NotImplementedError

    def _join(self, entry: Entry) -> bool:
        """Counts a new method among its actor's; False if there is no such actor any more."""
        assert entry.task is not None
        id = entry.task.actor
        if id == entry.id:
            self.actors[id] = Actor(id, entry.task.needs)
        actor = self.actors.get(id)
        if actor is None:
            return False
        entry.method, entry.actor_holds = actor.count, True
        actor.methods[actor.count] = entry.id
        actor.count += 1
        return True

    def _actor_of(self, entry: Entry) -> Actor | None:
        return self.actors.get(entry.task.actor) if entry.task is not None else None

    def _advance(self, actor: Actor) -> None:
        """Sends the methods whose turn it is and whose inputs are there."""
        while actor.next in actor.methods:
            entry = self.table[actor.methods[actor.next]]
            if entry.phase is Phase.WAITING and (entry.missing or not self._sent(actor, entry)):
                return
            actor.next += 1

    def _sent(self, actor: Actor, entry: Entry) -> bool:
        scheduler = LOCAL
        if actor.node < 0:
            choice = self._choose(entry, actor.needs)
            if choice is None:
                self._park(entry, actor.needs)
                return False
            actor.node, scheduler = choice.node, choice.scheduler
            self.nodes[actor.node].actors[actor.id] = None
        if actor.restore:
            actor.restore = False
            self._out.append(e.Restore(actor.id, actor.node, actor.next - 1))
        if entry.method <= actor.reached:
            self.replayed += 1
        self._send(entry, actor.node, scheduler)
        return True

    def _rewind(self, actor: Actor, method: int | None = None) -> list[str]:
        """Back to the newest checkpoint before all methods that are to run: their results are lost and needed.

        Returns the inputs of the methods since that are nowhere.
        """
        entries = [self.table[id] for id in actor.methods.values()]
        lost = [x.method for x in entries if x.phase is not Phase.ENDED or (not x.where and (x.wanted or x.waiting))]
        first = min(lost if method is None else [*lost, method], default=actor.count)
        base = max((c for c in actor.checkpoints if c < first), default=actor.checkpoints[0])
        actor.next, actor.restore = base + 1, base >= 0
        missing = []
        for entry in entries:
            self._unpark(entry)  # another one may be next now
            if entry.method > base:
                if entry.phase is Phase.SENT:
                    self._unsend(entry)
                    missing += self._wait(entry)
                elif entry.phase is Phase.ENDED:
                    missing += self._activate(entry)
        return missing

    def _checkpointed(self, event: e.Checkpointed) -> None:
        """Methods before the newest checkpoint are let go of, up to the first whose result somebody may need."""
        actor = self.actors.get(event.actor)
        id = actor.methods.get(event.method) if actor is not None else None
        if actor is None or id is None or event.method <= actor.checkpoints[-1]:
            return
        entry = self.table[id]
        if entry.phase is not Phase.ENDED or entry.attempt != event.attempt:
            return  # of a life that does not count
        actor.checkpoints.append(event.method)
        first = actor.held_from
        while first <= event.method and self._is_past(self.table[actor.methods[first]]):
            first += 1
        base = max(c for c in actor.checkpoints if c < max(first, actor.held_from))
        for number in range(actor.held_from, base + 1):
            entry = self.table[actor.methods.pop(number)]
            entry.actor_holds = False
            self._settle(entry.id)
        actor.held_from = base + 1
        self._out += [e.ForgetCheckpoint(actor.id, c) for c in actor.checkpoints if 0 <= c < base]
        actor.checkpoints = [c for c in actor.checkpoints if c >= base]

    def _is_past(self, entry: Entry) -> bool:
        """Whether nobody needs the result; a reference to the call that made the actor is one to the actor."""
        refs = entry.refs if entry.method else 0
        return entry.phase is Phase.ENDED and not (refs or entry.users or entry.heirs or entry.wanted)

    def _retire(self) -> None:
        """Stops the actors that nobody can reach and of whose results nobody needs any.

        Methods hold each other as lineage, in circles through their actors, so that counts alone do not tell.
        """
        idle = [actor for actor in map(self.actors.__getitem__, self._unreachable) if self._is_idle(actor)]
        while idle:
            needed = self._needed_from_outside([id for actor in idle for id in actor.methods.values()])
            free = [actor for actor in idle if needed.isdisjoint(actor.methods.values())]
            if len(free) == len(idle):
                break
            idle = free
        for actor in idle:
            self._stop(actor)

    def _is_idle(self, actor: Actor) -> bool:
        entries = [self.table[id] for id in actor.methods.values()]
        return all(entry.phase is Phase.ENDED and not (entry.refs or entry.wanted) for entry in entries)

    def _stop(self, actor: Actor) -> None:
        del self.actors[actor.id], self._unreachable[actor.id]
        if actor.node in self.nodes:
            self._out.append(e.Stop(actor.id, actor.node))
            del self.nodes[actor.node].actors[actor.id]
        self._out += [e.ForgetCheckpoint(actor.id, c) for c in actor.checkpoints if c >= 0]
        for id in actor.methods.values():
            self.table[id].actor_holds = False
        for id in actor.methods.values():
            self._settle(id)

    def _needed_from_outside(self, methods: Iterable[str]) -> set[str]:
        """Of these and all they were made from: what anything else needs, directly or through another of them."""
        within = self._backwards(methods)
        heirs = Counter(input for id in within for input in self.table[id].inputs)
        entries = [self.table[id] for id in within]
        return self._backwards(
            x.id for x in entries if x.refs or x.wanted or x.phase is not Phase.ENDED or x.heirs > heirs[x.id]
        )

    def _backwards(self, ids: Iterable[str]) -> set[str]:
        found = set(ids)
        stack = list(found)
        while stack:
            new = [input for input in self.table[stack.pop()].inputs if input not in found]
            found.update(new)
            stack += new
        return found
