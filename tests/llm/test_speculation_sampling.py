"""Guesses under random sampling: answers follow the model's law whatever was guessed."""

from __future__ import annotations

from collections import Counter
from itertools import product
from math import erfc, sqrt
from typing import Any

import numpy as np
import pytest

from nubes.llm.speculative.tree import ROOT, Tree
from nubes.llm.speculative.verify import multi_step, sampled


def chi_square(seen: Counter[Any], law: dict[Any, float], draws: int) -> float:
    """How likely a worse fit is, by the normal approximation of Wilson and Hilferty."""
    rare = [cell for cell, chance in law.items() if chance * draws < 5]
    cells = {cell: (seen[cell], chance * draws) for cell, chance in law.items() if cell not in rare}
    cells["rare"] = (sum(seen[cell] for cell in rare), sum(law[cell] for cell in rare) * draws)
    off = sum((count - right) ** 2 / right for count, right in cells.values() if right)
    free = sum(right > 0 for _, right in cells.values()) - 1
    z = ((off / free) ** (1 / 3) - (1 - 2 / (9 * free))) / sqrt(2 / (9 * free))
    return 0.5 * erfc(z / sqrt(2))


def law(draw: np.random.Generator, vocab: int, sharp: float) -> Any:
    weights = np.exp(sharp * draw.normal(size=vocab))
    return weights / weights.sum()


@pytest.mark.parametrize("children", [0, 1, 3])
def test_multi_step_sampling_follows_the_model(children: int) -> None:
    draw, draws, held = np.random.default_rng(children), 50_000, 0
    p, q = law(draw, 8, 1.5), law(draw, 8, 1.5)
    seen: Counter[int] = Counter()
    for drawn in draw.choice(8, size=(draws, children), p=q).tolist():
        token, taken = multi_step(p, q, drawn, draw)
        assert taken == (token in drawn), "what was refused never comes after all"
        seen[token] += 1
        held += taken
    assert chi_square(seen, dict(enumerate(p.tolist())), draws) > 0.01
    if children == 1:
        assert held / draws == pytest.approx(np.minimum(p, q).sum(), abs=0.01)


def test_a_whole_tree_follows_the_model() -> None:
    """Two tokens drawn through trees of two children each are as two tokens drawn from the model."""
    draw, draws, vocab = np.random.default_rng(5), 20_000, 4
    p = np.array([law(draw, vocab, 1.0) for _ in range(vocab + 1)])  # after nothing, and after each token
    q = np.array([law(draw, vocab, 1.0) for _ in range(vocab + 1)])
    seen: Counter[tuple[int, ...]] = Counter()
    for _ in range(draws):
        first = draw.choice(vocab, size=2, p=q[0]).tolist()
        tree = Tree()
        for token in first:
            tree.add(ROOT, token)
        rows = [0, *(token + 1 for token in tree.tokens)]
        tokens = sampled(tree, p[rows], q[rows], [first, *([] for _ in tree.tokens)], draw)
        if len(tokens) == 1:
            tokens.append(int(draw.choice(vocab, p=p[tokens[0] + 1])))
        seen[tuple(tokens)] += 1
    right = {(a, b): float(p[0, a] * p[a + 1, b]) for a, b in product(range(vocab), repeat=2)}
    assert chi_square(seen, right, draws) > 0.01


def test_equal_laws_never_refuse() -> None:
    draw = np.random.default_rng(0)
    p = law(draw, 6, 1.0)
    assert all(multi_step(p, p, [token], draw) == (token, True) for token in range(6))
