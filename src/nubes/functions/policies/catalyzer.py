"""Catalyzer: start from state that is already initialised."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp
from typing import Any

from nubes.functions.seams import ColdStart, FunctionView, Grow, NodeView, Plan
from nubes.kernel.policy import Paper, policy
from nubes.kernel.units import seconds

PAPER = Paper(
    "catalyzer",
    "Catalyzer",
    "Catalyzer: Sub-millisecond Startup for Serverless Computing with Initialization-less Booting",
    "ASPLOS 2020",
)


@policy("catalyzer", paper=PAPER)
class Catalyzer(ColdStart):
    """Fork boot from the function's template, else warm boot from a zygote with its imports, else cold boot at once.

    A boot that is not a fork boot waits for nothing; the template grows beside it, below a zygote that all functions
    with the same imports share. Kept are the templates with the highest start rate * saved seconds / bytes; a start
    counts less the longer it is ago (time constant `recent`), which is what ages a template nobody starts from.
    """

    def __init__(self, recent: str | float = "10m") -> None:
        self.recent_s = seconds(recent, "recent")
        self.starts: dict[
            str, tuple[float, float]
        ] = {}  # template or zygote -> its recent starts, when they were counted
        self.found: dict[str, int] = {}  # function -> where its template was last seen

    def plan(self, f: FunctionView, nodes: Mapping[int, NodeView], now: float) -> Plan:
        name, imports = f.spec.name, frozenset(f.spec.code.imports)
        template = self._template(name, nodes)
        zygote = 0 if template else next((n.id for n in nodes.values() if is_zygote(n, imports)), 0)
        self._count(name, now)
        self._count(key(imports), now)
        if template:
            return Plan(template)
        grow = Grow((), name)
        return Plan(zygote, (grow,) if zygote else (Grow(f.spec.code.imports), grow), wait=False)

    def worth(self, node: NodeView, now: float) -> float:
        count, at = self.starts.get(node.function or key(node.imports), (0.0, now))
        return count * exp((at - now) / self.recent_s) * node.grow_s / max(1, node.memory_bytes)

    def scores(self, question: str, *view: Any) -> list[tuple[str, float]]:
        """The boots, and the seconds each saves: nothing where what it starts from is not there."""
        if question != "plan":
            return []
        f, nodes, _ = view
        template = nodes.get(self._template(f.spec.name, nodes))
        imports = frozenset(f.spec.code.imports)
        warm = max((n.grow_s for n in nodes.values() if is_zygote(n, imports)), default=0.0)
        return [("fork boot", template.grow_s + warm if template else 0.0), ("warm boot", warm), ("cold boot", 0.0)]

    def _template(self, name: str, nodes: Mapping[int, NodeView]) -> int:
        node = nodes.get(self.found.get(name, 0))
        if node is None or not node.ready or node.function != name:
            node = next((n for n in nodes.values() if n.ready and n.function == name), None)
            if node is None:
                return 0
            self.found[name] = node.id
        return node.id

    def _count(self, what: str, now: float) -> None:
        count, at = self.starts.get(what, (0.0, now))
        self.starts[what] = (1.0 + count * exp((at - now) / self.recent_s), now)


def is_zygote(node: NodeView, imports: frozenset[str]) -> bool:
    """Whether `node` is up and holds these imports, no other and no function."""
    return node.ready and not node.function and not node.parent and node.imports == imports


def key(imports: frozenset[str]) -> str:
    """A name for a set of imports that is no function's."""
    return "+" + "+".join(sorted(imports))
