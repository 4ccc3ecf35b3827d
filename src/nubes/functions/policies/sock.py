"""SOCK: a tree of parents as an import cache."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from nubes.functions.seams import ColdStart, FunctionView, Grow, NodeView, Plan
from nubes.kernel.errors import UsageError
from nubes.kernel.policy import Paper, policy

PAPER = Paper("sock", "SOCK", "SOCK: Rapid Task Provisioning with Serverless-Optimized Containers", "USENIX ATC 2018")


@policy("sock", paper=PAPER)
class Sock(ColdStart):
    """Each node imports one package beyond its parent; a start takes the deepest that holds nothing it does not need.

    Nodes that lack grow below it, while the start goes ahead and imports the rest itself. The packages that most
    functions ask for come first, so that paths share what functions share. Leaves go by benefit / cost: forks *
    seconds of growing / bytes (`evict=benefit`), or least recently used first (`evict=lru`); the bare root never.
    """

    def __init__(self, evict: str = "benefit") -> None:
        if evict not in ("benefit", "lru"):
            raise UsageError(f"evict={evict!r} is not known.", "Write evict=benefit or evict=lru.")
        self.by_benefit = evict == "benefit"
        self.imports: dict[str, tuple[str, ...]] = {}  # function -> the packages it asks for
        self.asked: dict[str, int] = {}  # package -> functions that ask for it

    def plan(self, f: FunctionView, nodes: Mapping[int, NodeView], now: float) -> Plan:
        self._note(f.spec.name, f.spec.code.imports)
        wanted = frozenset(f.spec.code.imports)
        source = deepest(wanted, nodes)
        have = nodes[source].imports if source else frozenset()
        missing = sorted(wanted - have, key=lambda package: (-self.asked[package], package))
        chain = tuple(Grow((package,)) for package in missing)
        return Plan(source, chain if source else (Grow(), *chain), wait=False)

    def worth(self, node: NodeView, now: float) -> float:
        if not node.parent:
            return inf
        return node.forks * node.grow_s / max(1, node.memory_bytes) if self.by_benefit else node.last_used_s

    def scores(self, question: str, *view: Any) -> list[tuple[str, float]]:
        """The nodes a start may be forked from, and how many of its packages each holds."""
        if question != "plan":
            return []
        f, nodes, _ = view
        wanted = frozenset(f.spec.code.imports)
        usable = [n for n in nodes.values() if fits(n, wanted)]
        return [(f"node {n.id}", float(len(n.imports))) for n in sorted(usable, key=lambda n: (-len(n.imports), n.id))]

    def _note(self, name: str, imports: tuple[str, ...]) -> None:
        before = self.imports.get(name, ())
        if before != imports:
            self.imports[name] = imports
            for package in set(before):
                self.asked[package] -= 1
            for package in set(imports):
                self.asked[package] = self.asked.get(package, 0) + 1


def fits(node: NodeView, wanted: frozenset[str]) -> bool:
    """Whether a function that wants these packages may be forked from `node`: it must hold nothing beyond them."""
    return node.ready and not node.function and node.imports <= wanted


def deepest(wanted: frozenset[str], nodes: Mapping[int, NodeView]) -> int:
    """The node to fork from; 0 if none fits. Of those that hold equally many packages the oldest."""
    best, most = 0, -1
    for node in nodes.values():
        if len(node.imports) > most and fits(node, wanted):
            best, most = node.id, len(node.imports)
            if most == len(wanted):
                break
    return best
