"""SEUSS: a stack of snapshots, and starts from the deepest that fits."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from nubes.functions.seams import ColdStart, FunctionView, Grow, NodeView, Plan
from nubes.kernel.policy import Paper, policy

PAPER = Paper("seuss", "SEUSS", "SEUSS: Skip Redundant Paths to Make Serverless Fast", "EuroSys 2020")


@policy("seuss", paper=PAPER)
class Seuss(ColdStart):
    """Runtime node -> one node per function, captured after its module is imported; instances are copy-on-write clones.

    Hot: an idle instance takes the call (not a start at all). Warm: the function's node exists and is cloned.
    Cold: the runtime node is cloned, imports the function, is captured as its node, and that is cloned.
    Function nodes are reclaimed least recently used first, the runtime node never.
    """

    prime = True

    def plan(self, f: FunctionView, nodes: Mapping[int, NodeView], now: float) -> Plan:
        root = 0
        for node in nodes.values():
            if node.ready and node.function == f.spec.name:
                return Plan(node.id)
            if not node.parent:
                root = node.id
        capture = Grow(f.spec.code.imports, f.spec.name)
        return Plan(root, (capture,)) if root else Plan(0, (Grow(), capture))

    def worth(self, node: NodeView, now: float) -> float:
        return node.last_used_s if node.function else inf
