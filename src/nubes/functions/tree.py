"""The process tree's state machine: parents grow, get forked from, and are pruned when all are over their budget."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from nubes.functions.events import GrowNode, NodeReady, PruneNode, StartInstance
from nubes.functions.seams import ColdStart, NodeView, Plan
from nubes.kernel.message import Command

if TYPE_CHECKING:
    from nubes.functions.state import Function, Instance

MAX_FAILURES = 3


class Tree:
    """Turns the cold-start policy's plans into commands. `budgets`: bytes that a machine's parents may hold."""

    def __init__(self, policy: ColdStart, budget_bytes: float = inf) -> None:
        self.policy = policy
        self.budgets: dict[int, float] = {0: budget_bytes}  # by machine
        self.nodes: dict[tuple[int, str], dict[int, NodeView]] = {}  # (machine, environment) -> its parents
        self.where: dict[int, NodeView] = {}
        self.waiting: dict[int, list[Instance]] = {}  # starts that wait for a parent to be ready
        self.failures: dict[str, int] = {}  # function -> parents lost in a row while it waited
        self.ids = 0

    def start(self, instance: Instance, now: float, out: list[Command]) -> None:
        """Emits what starts `instance`, at once or when the parent it waits for is ready."""
        f = instance.function
        if self.failures.get(f.spec.name, 0) >= MAX_FAILURES:  # no parent can be had: a fresh interpreter still can
            out.append(StartInstance(instance.id, f.name, f.variant, 0, instance.machine.id))
            return
        plan = self._plan(f, instance.machine.id, now)
        target = self._grow(plan, f, instance.machine.id, now, out)
        if not plan.wait or target == plan.source:
            self._fork(instance, plan.source, now, out)
        elif self.where[target].ready:
            self._fork(instance, target, now, out)
        else:
            self.waiting.setdefault(target, []).append(instance)

    def prepare(self, f: Function, now: float, out: list[Command]) -> None:
        """Grows what the policy wants for `f` before its first call, on every machine."""
        if self.policy.eager:
            for machine in self.budgets:
                self._grow(self._plan(f, machine, now), f, machine, now, out)

    def _plan(self, f: Function, machine: int, now: float) -> Plan:
        plan = self.policy.plan(f, self.nodes.get((machine, f.spec.environment), {}), now)
        source = self.where.get(plan.source)
        if source and source.function not in ("", f.spec.name):  # it holds what is another function's, secrets too
            return Plan(0, plan.grow, plan.wait)
        return plan

    def _grow(self, plan: Plan, f: Function, machine: int, now: float, out: list[Command]) -> int:
        parent = plan.source
        environment = f.spec.environment
        nodes = self.nodes.setdefault((machine, environment), {})
        for grow in plan.grow:
            above = nodes.get(parent)
            imports = frozenset(grow.imports) | (above.imports if above else frozenset())
            same = (
                n.id
                for n in nodes.values()
                if n.parent == parent and n.imports == imports and n.function == grow.function
            )
            existing = next(same, 0)
            if existing:
                parent = existing
                continue
            self.ids += 1
            node = NodeView(self.ids, parent, environment, imports, grow.function, now, machine)
            nodes[node.id] = self.where[node.id] = node
            if above:
                above.children += 1
            out.append(GrowNode(node.id, parent, environment, tuple(sorted(grow.imports)), grow.function, machine))
            parent = node.id
        return parent

    def _fork(self, instance: Instance, source: int, now: float, out: list[Command]) -> None:
        f = instance.function
        node = self.where.get(source)
        if node:
            node.forks += 1
            node.last_used_s = now
        instance.node = source
        out.append(StartInstance(instance.id, f.name, f.variant, source, instance.machine.id))

    def ready(self, event: NodeReady, now: float, out: list[Command]) -> None:
        node = self.where.get(event.node)
        if node is None:
            return
        node.ready = True
        node.grow_s = event.seconds
        node.memory_bytes = event.memory_bytes
        for instance in self.waiting.pop(node.id, []):
            self.failures.pop(instance.function.spec.name, None)
            if not instance.stopping:
                self._fork(instance, node.id, now, out)
        self.trim(node.machine, now, out)

    def lost(self, id: int, now: float, out: list[Command]) -> None:
        """A parent died: its children in the tree go too, and who waited for one of them plans anew."""
        if id not in self.where:
            return
        for instance in self._cut(id, out):
            name = instance.function.spec.name
            self.failures[name] = self.failures.get(name, 0) + 1
            self.start(instance, now, out)

    def drop(self, function: str, now: float, out: list[Command]) -> None:
        """Prunes what was grown for one function alone."""
        waited: list[Instance] = []
        for id in [n.id for n in self.where.values() if n.function == function]:
            if id in self.where:
                out.append(PruneNode(id, "its function was replaced"))
                waited += self._cut(id, out)
        self.failures.pop(function, None)
        for instance in waited:
            self.start(instance, now, out)

    def _cut(self, id: int, out: list[Command]) -> list[Instance]:
        """Takes a parent that is gone and all below it out of the tree; returns the instances that waited for them."""
        node = self.where.pop(id)
        nodes = self.nodes[node.machine, node.environment]
        del nodes[id]
        if node.parent in nodes:
            nodes[node.parent].children -= 1
        waited = [instance for instance in self.waiting.pop(id, []) if not instance.stopping]
        for child in [n.id for n in nodes.values() if n.parent == id]:
            out.append(PruneNode(child, "its parent is gone"))
            waited += self._cut(child, out)
        return waited

    def forget(self, machine: int) -> None:
        """A machine is gone with all its parents; whoever waited for one of them is gone as well."""
        self.budgets.pop(machine, None)
        for key in [key for key in self.nodes if key[0] == machine]:
            for id in self.nodes.pop(key):
                del self.where[id]
                self.waiting.pop(id, None)

    def clear(self) -> None:
        self.nodes.clear()
        self.where.clear()
        self.waiting.clear()
        self.failures.clear()

    def trim(self, machine: int, now: float, out: list[Command]) -> None:
        """Prunes a machine's parents without children, the least worth first, while all are over its budget."""
        nodes = [n for (where, _), group in self.nodes.items() if where == machine for n in group.values()]
        used = sum(node.memory_bytes for node in nodes)
        while used > self.budgets.get(machine, inf):
            leaves = [
                n for n in nodes if n.id in self.where and n.ready and not n.children and n.id not in self.waiting
            ]
            ranked = [(self.policy.worth(n, now), n.id) for n in leaves]
            worth, victim = min(ranked, default=(inf, 0))
            if worth == inf:
                return
            used -= self.where[victim].memory_bytes
            out.append(PruneNode(victim, "the tree is over its budget"))
            self._cut(victim, out)  # has no children, and nobody waits for it
