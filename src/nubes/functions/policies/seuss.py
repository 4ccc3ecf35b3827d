"""SEUSS: a stack of snapshots, and starts from the deepest that fits."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from nubes.functions.seams import ColdStart, FunctionView, Grow, NodeView, Plan
from nubes.kernel.policy import Paper, policy

PAPER = Paper("seuss", "SEUSS", "SEUSS: Skip Redundant Paths to Make Serverless Fast", "EuroSys 2020")


@policy("seuss", paper=PAPER)
class Seuss(ColdStart):
    """Runtime node -> one node per function, captured after its module is imported; instances are copy-on-write clones.

    Hot: an idle instance takes the call (not a start at all). Warm: the function's node exists and is cloned.
    Cold: the runtime node is cloned, imports the function, is captured as its node, and that is cloned.
    Function nodes are reclaimed least recently used first, the runtime node never. `runtime` names packages
    (`numpy+scipy`) that a runtime node of its own holds for all functions that import every one of them.
    """

    prime = True

    def __init__(self, runtime: str = "") -> None:
        self.runtime = frozenset(filter(None, runtime.split("+")))
        self.found: dict[str, int] = {}  # function -> where its node was last seen, so that not all are searched

    def plan(self, f: FunctionView, nodes: Mapping[int, NodeView], now: float) -> Plan:
        name = f.spec.name
        node = nodes.get(self.found.get(name, 0))
        if node is not None and node.ready and node.function == name:
            return Plan(node.id)
        root = 0
        shared = self.runtime if self.runtime <= set(f.spec.code.imports) else frozenset()
        for node in nodes.values():
            if node.ready and node.function == name:
                self.found[name] = node.id
                return Plan(node.id)
            if node.ready and not node.parent and not node.function and node.imports == shared:
                root = node.id
        capture = Grow(tuple(package for package in f.spec.code.imports if package not in shared), name)
        return Plan(root, (capture,)) if root else Plan(0, (Grow(tuple(sorted(shared))), capture))

    def worth(self, node: NodeView, now: float) -> float:
        return node.last_used_s if node.function else inf

    def scores(self, question: str, *view: Any) -> list[tuple[str, float]]:
        """The paths of a start, and the seconds of growing that each saves: nothing where its node is not ready."""
        if question != "plan":
            return []
        f, nodes, _ = view
        ready = [n for n in nodes.values() if n.ready]
        cold = max((n.grow_s for n in ready if not n.parent), default=0.0)
        warm = max((n.grow_s for n in ready if n.function == f.spec.name), default=0.0)
        return [("warm", warm + cold if warm else 0.0), ("cold", cold), ("fresh", 0.0)]
