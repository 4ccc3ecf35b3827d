"""Token trees: guessed continuations of one sequence that share their beginnings.

From: SpecInfer: Accelerating Large Language Model Serving with Tree-based Speculative Inference and Verification
(ASPLOS 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

ROOT = -1  # the last verified token, which is no guess
MOST = 64  # guesses in one tree: what a row's mask has bits for


class Tree:
    """Guesses in depth-first order, so that a node's row may attend to its ancestors' and those stand before it.

    Node i has `tokens[i]`, a parent, a depth (1 below the root) and a mask: bit j is set if j is i or its ancestor.
    `proposers[i]`: bit d is set if draft d proposed it. Siblings stand in the order in which they were preferred.
    """

    __slots__ = ("_branches", "depths", "masks", "parents", "proposers", "tokens")

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self.masks: list[int] = []
        self.proposers: list[int] = []
        self._branches: list[dict[int, int]] = [{}]  # of the root, then of each node: token -> child

    def __len__(self) -> int:
        return len(self.tokens)

    def branches(self, node: int) -> dict[int, int]:
        """Token -> child of a node or of `ROOT`."""
        return self._branches[node + 1]

    def add(self, parent: int, token: int, proposers: int = 1) -> int:
        """A child of `parent`; if there is one with that token, that one."""
        child = self._branches[parent + 1].get(token)
        if child is not None:
            self.proposers[child] |= proposers
            return child
        child = len(self.tokens)
        above = 0 if parent == ROOT else self.masks[parent]
        self._branches[parent + 1][token] = child
        self._branches.append({})
        self.tokens.append(token)
        self.parents.append(parent)
        self.depths.append(1 if parent == ROOT else self.depths[parent] + 1)
        self.masks.append(above | 1 << child)
        self.proposers.append(proposers)
        return child

    @property
    def chain(self) -> bool:
        """Whether no node has a sibling."""
        return all(parent == at - 1 for at, parent in enumerate(self.parents))


def expand(text: Sequence[int], widths: Sequence[int], likely: Callable[[Sequence[int], int], Sequence[int]]) -> Tree:
    """A tree in which each node at depth i has up to `widths[i]` children: what `likely(text so far, count)` says."""
    tree, path = Tree(), list(text)

    def grow(parent: int, depth: int) -> None:
        if depth == len(widths):
            return
        for token in likely(path, widths[depth]):
            if len(tree) == MOST:
                return
            child = tree.add(parent, token)
            path.append(token)
            grow(child, depth + 1)
            path.pop()

    grow(ROOT, 0)
    return tree


def merge(trees: Sequence[Tree]) -> Tree:
    """All continuations of several drafts' trees, each once. Bit d of a node's proposers: it stands in `trees[d]`."""
    merged = Tree()

    def walk(into: int, places: list[tuple[int, int]]) -> None:
        found: dict[int, list[tuple[int, int]]] = {}
        for draft, node in places:
            for token, child in trees[draft].branches(node).items():
                found.setdefault(token, []).append((draft, child))
        for token, below in found.items():
            if len(merged) == MOST:
                return
            walk(merged.add(into, token, sum(1 << draft for draft, _ in below)), below)

    walk(ROOT, [(draft, ROOT) for draft in range(len(trees))])
    return merged
