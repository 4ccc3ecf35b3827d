"""No process tree: the baselines that the published trees are measured against."""

from __future__ import annotations

from collections.abc import Mapping

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
        root = next((n.id for n in nodes.values() if n.ready and not n.parent), 0)
        return Plan(root) if root else Plan(0, (Grow(),))
