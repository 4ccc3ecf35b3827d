"""Machines in the order of their worth for one class of requests, kept right by looking at those that changed.

The layers of Protean's cache are the same thing at three places: `Results` is the first, what one rule says of each
machine; a `Ranking` of a cluster's machines is the second, and a `Ranking` of the zone's clusters the third.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Generic, TypeVar

from nubes.cluster.allocation.inventory import Log
from nubes.cluster.seams import MachineView, Preference, Request, Validator
from nubes.kernel.errors import UsageError

K = TypeVar("K", int, str)
Score = tuple[float, ...]
Ask = Callable[[Request, MachineView], float]


class Rules:
    """What machines must pass, and preferences in strict order. Two requests of one class get the same answers."""

    def __init__(self, validators: Sequence[Validator] = (), preferences: Sequence[Preference] = ()) -> None:
        self.validators = tuple(validators)
        self.preferences = tuple(preferences)
        self.all: tuple[Validator | Preference, ...] = (*validators, *preferences)
        self.reads = tuple(sorted({field for rule in self.all for field in rule.reads}))
        if len({rule.name for rule in self.all}) < len(self.all):
            raise UsageError("Two rules have one name.", "Give each a name of its own: results are kept by it.")

    def of(self, request: Request) -> Hashable:
        """The class of a request: the fields that any rule reads."""
        return reduced(self.reads, request)


def reduced(reads: Sequence[str], request: Request) -> Hashable:
    """The values of those fields."""
    values: Hashable = attrgetter(*reads)(request) if reads else ()
    return values


class Results:
    """What one rule says of each machine, for all requests that it cannot tell apart."""

    __slots__ = ("__weakref__", "ask", "known", "log", "position", "request")

    def __init__(self, ask: Ask, request: Request, log: Log[int]) -> None:
        self.ask, self.request, self.log = ask, request, log
        self.position = log.end
        self.known: dict[int, float] = {}

    def refresh(self) -> None:
        """Forgets what has changed."""
        changed = self.log.since(self.position)
        self.position = self.log.end
        if changed is None:
            self.known.clear()
            return
        for id in changed:
            self.known.pop(id, None)

    def of(self, machine: MachineView) -> float:
        value = self.known.get(machine.id)
        if value is None:
            value = self.known[machine.id] = self.ask(self.request, machine)
        return value


class Ranking(Generic[K]):
    """Items that pass the validators, in groups of equal scores. Within a group they stand in the order of their ids.

    `shared` are the results of some of the rules, by the rules' names.
    """

    def __init__(
        self, rules: Rules, request: Request, items: Mapping[K, MachineView], log: Log[K],
        shared: Mapping[str, Results] | None = None,
    ) -> None:  # fmt: skip
        self.items: Mapping[K, MachineView] = items
        self.log: Log[K] = log
        self.shared = shared or {}
        self.used = 0  # when it was last asked for, for whoever keeps it
        ask = {name: results.of for name, results in self.shared.items()}
        self._validators = [ask.get(rule.name) or partial(rule.holds, request) for rule in rules.validators]
        self._preferences = [ask.get(rule.name) or partial(rule.score, request) for rule in rules.preferences]
        self._build()

    def _build(self) -> None:
        self.position = self.log.end
        for results in self.shared.values():
            results.refresh()
        self.score_of: dict[K, Score] = {}
        self.groups: dict[Score, list[K]] = {}
        for id in sorted(self.items):
            score = self._score(self.items[id])
            if score is not None:
                self.score_of[id] = score
                self.groups.setdefault(score, []).append(id)
        self.keys = sorted(self.groups)

    def refresh(self) -> int:
        """Looks again at what changed since it was last here; returns how many items that were."""
        if self.position == self.log.end:
            return 0
        changed = self.log.since(self.position)
        if changed is None or len(changed) > len(self.items):
            self._build()
            return len(self.items)
        self.position = self.log.end
        for results in self.shared.values():
            results.refresh()
        items, score_of = self.items, self.score_of
        for id in changed:
            item = items.get(id)
            score = None if item is None else self._score(item)
            before = score_of.get(id)
            if score != before:
                self._move(id, before, score)
        return len(changed)

    def _score(self, item: MachineView) -> Score | None:
        for holds in self._validators:
            if not holds(item):
                return None
        return tuple([score(item) for score in self._preferences])

    def _move(self, id: K, before: Score | None, score: Score | None) -> None:
        if before is not None:
            group = self.groups[before]
            if len(group) == 1:
                del self.groups[before], self.keys[bisect_left(self.keys, before)]
            else:
                del group[bisect_left(group, id)]
            del self.score_of[id]
        if score is not None:
            self.score_of[id] = score
            if score in self.groups:
                insort(self.groups[score], id)
            else:
                self.groups[score] = [id]
                insort(self.keys, score)
