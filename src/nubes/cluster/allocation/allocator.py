"""Two-level choice over an inventory: clusters are ranked, then the machines of the best one, and so on down the list.

Decisions are the same with and without caches; with them a decision costs what changed since the last one like it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice
from random import Random
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from nubes.cluster.allocation.inventory import Cluster, Inventory, Weights
from nubes.cluster.allocation.ranking import Ranking, Results, Rules, reduced
from nubes.cluster.seams import Request, Validator

K = TypeVar("K", int, str)
Rulebook = Callable[[Weights], tuple[Rules, Rules]]  # those of clusters and of machines; the same for equal weights


class Allocator:
    """Chooses machines. Among equally good ones it takes any, so that agents get in each other's way less.

    What was not asked for in the last `keep` decisions is forgotten.
    """

    def __init__(
        self, inventory: Inventory, rulebook: Rulebook, draw: Random, cached: bool = True, keep: int = 20_000
    ) -> None:
        self.inventory, self.rulebook, self.draw, self.cached, self.keep = inventory, rulebook, draw, cached, keep
        self.decisions = 0
        self.zones: dict[Any, Ranking[str]] = {}  # layer 3
        self.rankings: OrderedDict[Any, Ranking[int]] = OrderedDict()  # layer 2, the longest unused first
        self.results: WeakValueDictionary[Any, Results] = WeakValueDictionary()  # layer 1, while rankings use them
        self.first: dict[Any, Any] = {}  # (rule, the fields it reads) -> the class that was asked about first

    def choose(self, request: Request) -> int | None:
        """The machine for `request`, or None if none will do."""
        return next(self.candidates(request), None)

    def candidates(self, request: Request) -> Iterator[int]:
        """All that will do, the best first, as of now: it ends where `candidates` is asked anew."""
        self.decisions += 1
        self._evict()
        clusters, machines = self.rulebook(self.inventory.weights())
        for zone in self._any_order(self._clusters(clusters, request)):
            yield from self._any_order(self._machines(machines, request, zone))

    def within(self, zone: str, request: Request) -> Iterator[int]:
        """Those of one cluster alone."""
        self.decisions += 1
        self._evict()
        if zone in self.inventory.clusters:
            yield from self._any_order(self._machines(self.rulebook(self.inventory.weights())[1], request, zone))

    def refresh(self, limit: int) -> int:
        """Brings the `limit` rankings that were used last up to date, for an idle moment; returns how many changed."""
        return sum(ranking.refresh() > 0 for ranking in islice(reversed(self.rankings.values()), limit))

    def _any_order(self, ranking: Ranking[K]) -> Iterator[K]:
        for key in list(ranking.keys):
            group = ranking.groups[key]
            if len(group) > 1:
                chosen = group[self.draw.randrange(len(group))]
                yield chosen
                group = [id for id in group if id != chosen]
                self.draw.shuffle(group)
            yield from group

    def _clusters(self, rules: Rules, request: Request) -> Ranking[str]:
        key = (rules, rules.of(request))
        ranking = self.zones.get(key)
        if ranking is None:
            ranking = Ranking(rules, request, self.inventory.clusters, self.inventory.cluster_log)
            if self.cached:
                self.zones[key] = ranking
        else:
            ranking.refresh()
        ranking.used = self.decisions
        return ranking

    def _machines(self, rules: Rules, request: Request, zone: str) -> Ranking[int]:
        key = (rules, zone, rules.of(request))
        ranking = self.rankings.get(key)
        if ranking is None:
            cluster = self.inventory.clusters[zone]
            shared = self._shared(rules, request, cluster) if self.cached else {}
            ranking = Ranking(rules, request, cluster.machines, cluster.log, shared)
            if self.cached:
                self.rankings[key] = ranking
        else:
            self.rankings.move_to_end(key)
            ranking.refresh()
        ranking.used = self.decisions
        return ranking

    def _shared(self, rules: Rules, request: Request, cluster: Cluster) -> dict[str, Results]:
        """Results of rules that cannot tell this request from one of another class that was here before."""
        shared = {}
        mine = rules.of(request)
        for rule in rules.all:
            if 0 < len(rule.reads) < len(rules.reads):  # what reads nothing of a request is quicker asked than kept
                alike = (rule, reduced(rule.reads, request))
                if self.first.setdefault(alike, mine) == mine:
                    continue
                key = (alike, cluster.zone)
                results = self.results.get(key)
                if results is None:
                    ask = rule.holds if isinstance(rule, Validator) else rule.score
                    results = self.results[key] = Results(ask, request, cluster.log)
                shared[rule.name] = results
        return shared

    def _evict(self) -> None:
        """Forgets what is long unused."""
        old = self.decisions - self.keep
        while self.rankings and next(iter(self.rankings.values())).used < old:
            self.rankings.popitem(last=False)
        if self.decisions % self.keep == 0:
            self.first.clear()
            self.zones = {key: ranking for key, ranking in self.zones.items() if ranking.used >= old}


class Agent:
    """One of several that allocate at once: decides on a copy of the inventory, and commits to the shared one.

    Where a commit fails, as another was there before, the next candidate is taken.
    """

    def __init__(self, shared: Inventory, rulebook: Rulebook, draw: Random, cached: bool = True) -> None:
        self.shared = shared
        self.own = shared.copy()
        self.position = shared.log.end
        self.allocator = Allocator(self.own, rulebook, draw, cached)
        self.conflicts = 0

    def sync(self) -> None:
        """Takes over what others changed since the last time."""
        changed = self.shared.log.since(self.position)
        self.position = self.shared.log.end
        for id in {*self.own.machines, *self.shared.machines} if changed is None else changed:
            self._pull(id)

    def decide(self, request: Request) -> Iterator[int]:
        """The machines for `request` as this agent sees them, the best first."""
        return self.allocator.candidates(request)

    def commit(self, id: int, request: Request) -> bool:
        """Whether the machine still had room in truth, and now has `request` on it."""
        done = self.shared.commit(id, request)
        self.conflicts += not done
        self._pull(id)
        return done

    def place(self, request: Request) -> int | None:
        """Decides and commits, as often as it takes; None if no machine will do."""
        return next((id for id in self.decide(request) if self.commit(id, request)), None)

    def _pull(self, id: int) -> None:
        m = self.shared.machines.get(id)
        if m is not None:
            self.own.put(m)
        elif id in self.own.machines:
            self.own.drop(id)
