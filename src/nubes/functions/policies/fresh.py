"""No shared process tree: the baselines that the published trees are measured against."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from nubes.functions.seams import ColdStart, FunctionView, Grow, NodeView, Plan
from nubes.kernel.policy import policy


@policy("fresh")
class Fresh(ColdStart):
    """A new interpreter for every instance, which imports everything itself."""

    eager = False

    def plan(self, f: FunctionView, nodes: Mapping[int, NodeView], now: float) -> Plan:
        return Plan(0)


@policy("zygote")
class Zygote(ColdStart):
    """One parent with a bare interpreter; instances import everything else themselves."""

    def plan(self, f: FunctionView, nodes: Mapping[int, NodeView], now: float) -> Plan:
        root = next((n.id for n in nodes.values() if n.ready and not n.parent and not n.imports and not n.function), 0)
        return Plan(root) if root else Plan(0, (Grow(),))

    def worth(self, node: NodeView, now: float) -> float:
        return inf


@policy("flat-zygote")
class FlatZygote(ColdStart):
    """One parent per function with its imports and its module loaded, which shares nothing with the others."""

    def plan(self, f: FunctionView, nodes: Mapping[int, NodeView], now: float) -> Plan:
        own = next((n.id for n in nodes.values() if n.ready and not n.parent and n.function == f.spec.name), 0)
        return Plan(own) if own else Plan(0, (Grow(f.spec.code.imports, f.spec.name),))
