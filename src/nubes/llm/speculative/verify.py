"""Which guesses hold: along the tree as the model goes on, and by rejection where guesses were drawn at random.

From: SpecInfer: Accelerating Large Language Model Serving with Tree-based Speculative Inference and Verification
(ASPLOS 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nubes.llm.speculative.tree import ROOT, Tree

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def accepted(tree: Tree, choose: Callable[[int], int | None]) -> list[int]:
    """The nodes on the path that the model takes. `choose(node)`: its token after that node, or None if it ends there.

    One token more comes of it than nodes are accepted: what was chosen after the last. A token is chosen once for each
    node on the path, in order, from the model's own distribution: greedy answers are those of plain decoding, and
    random ones too, from the same random numbers.
    """
    path: list[int] = []
    node = ROOT
    while (token := choose(node)) is not None and (child := tree.branches(node).get(token)) is not None:
        path.append(child)
        node = child
    return path


def greedy(tree: Tree, choices: Sequence[int]) -> list[int]:
    """The accepted nodes, if the model's likeliest token after the root is `choices[0]`, after i `choices[i + 1]`."""
    return accepted(tree, lambda node: choices[node + 1])


def multi_step(
    p: NDArray[np.float64], q: NDArray[np.float64], drawn: Sequence[int], rng: np.random.Generator
) -> tuple[int, bool]:
    """(A token, whether it is one of `drawn`), distributed as `p` [vocab], if each of `drawn` came from `q` [vocab].

    Multi-step speculative sampling: a guess x is accepted with probability p(x) / q(x), else p becomes what q does not
    cover of it, and the next guess has its turn. The guesses have to be drawn independently; one may come twice.
    """
    for token in drawn:
        if rng.random() * q[token] <= p[token]:
            return token, True
        left = (p - q).clip(0.0)
        if not (total := left.sum()):
            break  # p is q but for rounding
        p = left / total
    return int(rng.choice(len(p), p=p)), False


def sampled(
    tree: Tree, p: NDArray[np.float64], q: NDArray[np.float64], drawn: Sequence[Sequence[int]], rng: np.random.Generator
) -> list[int]:
    """Tokens distributed as if each was drawn from the model: one for each accepted guess, and one more.

    Row 0 of `p` and `q` [nodes + 1, vocab] is the model's and the draft's distribution after the root, row i + 1 after
    node i; `drawn` are the guesses after each, of which `tree` was built.
    """
    tokens: list[int] = []

    def choose(node: int) -> int:
        token, _ = multi_step(p[node + 1], q[node + 1], drawn[node + 1], rng)
        tokens.append(token)
        return token

    accepted(tree, choose)
    return tokens
