"""A graph on its way: which chains can be run now, and as what. Sans-I/O; it sees no text.

manager = Manager("a", plan(graph), now)
for task in manager.ready(): ...                 run each, beside each other
for task in manager.resolved("x"): ...           when the chain that makes x has ended
"""

from __future__ import annotations

import msgspec

from nubes.llm.graphs.deduction import Wanted, deduce, depths
from nubes.llm.graphs.spec import Chain, Plan
from nubes.llm.spec import Work


class Task(msgspec.Struct, frozen=True):
    """A chain whose inputs are there, and what its request is to be served as."""

    chain: Chain
    work: Work


class Manager:
    """The state of one graph. Chains that no awaited variable needs are not run."""

    def __init__(self, app: str, plan: Plan, now: float, *, deduces: bool = True) -> None:
        """`deduces=False`: every call is taken for one that somebody waits for, as if it had come by itself."""
        self.app = app
        self.begun_s = now
        wanted = deduce(plan.chains, plan.get)
        if not deduces:
            depth = depths(plan.chains)
            wanted = {number: Wanted("latency", depth[number]) for number in wanted}
        self.wanted = wanted
        self.chains = {chain.number: chain for chain in plan.chains if chain.number in wanted}
        self.awaited = set(plan.get) - plan.values
        self.values = set(plan.values)
        self.lost: set[str] = set()
        self.users: dict[str, list[int]] = {}
        self.missing: dict[int, int] = {}
        for number, chain in self.chains.items():
            needs = [name for name in chain.inputs if name not in plan.values]
            self.missing[number] = len(needs)
            for name in needs:
                self.users.setdefault(name, []).append(number)

    @property
    def done(self) -> bool:
        """Whether nothing is left that somebody waits for."""
        return not self.awaited

    def ready(self) -> list[Task]:
        """What can be run from the beginning."""
        return [self._task(number) for number, count in self.missing.items() if not count]

    def resolved(self, variable: str) -> list[Task]:
        """A variable has its value. What can be run because of it."""
        if variable in self.values or variable in self.lost:
            return []
        self.values.add(variable)
        self.awaited.discard(variable)
        found = []
        for number in self.users.get(variable, ()):
            self.missing[number] -= 1
            if not self.missing[number] and self.chains[number].output not in self.lost:
                found.append(self._task(number))
        return found

    def failed(self, variable: str) -> list[str]:
        """A variable will have no value. It, and all that will have none because of it."""
        found: list[str] = []
        stack = [variable]
        while stack:
            name = stack.pop()
            if name in self.lost or name in self.values:
                continue
            self.lost.add(name)
            self.awaited.discard(name)
            found.append(name)
            stack += [self.chains[number].output for number in self.users.get(name, ())]
        return found

    def _task(self, number: int) -> Task:
        wanted = self.wanted[number]
        group = f"{self.app}/{wanted.group}" if wanted.group >= 0 else ""
        work = Work(
            app=self.app, begun_s=self.begun_s, criterion=wanted.criterion, depth=wanted.depth, group=group
        )  # fmt: skip
        return Task(self.chains[number], work)
