"""Trees of guesses: what they hold, what of them holds, and guesses from what was said before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nubes.llm.speculative.ngrams import Ngrams
from nubes.llm.speculative.stepping import moves, ranks
from nubes.llm.speculative.tree import MOST, ROOT, Tree, expand, merge
from nubes.llm.speculative.verify import accepted, greedy

tries = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), max_size=8)


def paths(tree: Tree) -> list[tuple[int, ...]]:
    """The continuation that ends at each node."""
    found: list[tuple[int, ...]] = []
    for node, token in enumerate(tree.tokens):
        above = tree.parents[node]
        found.append((*(found[above] if above != ROOT else ()), token))
    return found


def planted(continuations: list[list[int]]) -> Tree:
    """A tree of these, in depth-first order."""
    beginnings = {tuple(of[:end]) for of in continuations for end in range(1, len(of) + 1)}

    def likely(path: Sequence[int], count: int) -> list[int]:
        return sorted({of[len(path)] for of in beginnings if len(of) == len(path) + 1 and of[:-1] == tuple(path)})

    return expand([], [4] * 5, likely)


def is_depth_first(tree: Tree) -> None:
    for node, (parent, depth, mask) in enumerate(zip(tree.parents, tree.depths, tree.masks, strict=True)):
        ancestors = {node}
        while (up := tree.parents[min(ancestors)]) != ROOT:
            ancestors.add(up)
        assert mask == sum(1 << above for above in ancestors)
        assert depth == len(ancestors)
        # What stands between a node and its parent is below the parent.
        assert all(parent == ROOT or tree.masks[between] >> parent & 1 for between in range(parent + 1, node))


@given(tries)
def test_a_tree_holds_each_beginning_once(continuations: list[list[int]]) -> None:
    tree = planted(continuations)
    every = {tuple(of[:end]) for of in continuations for end in range(1, len(of) + 1)}
    assert sorted(paths(tree)) == sorted(every)
    is_depth_first(tree)
    assert tree.chain == all(parent == node - 1 for node, parent in enumerate(tree.parents))


@given(st.lists(tries, min_size=1, max_size=3))
def test_merging_is_union(drafts: list[list[list[int]]]) -> None:
    trees = [planted(of) for of in drafts]
    merged = merge(trees)
    found = paths(merged)
    union = {path for tree in trees for path in paths(tree)}
    assert set(found) <= union
    assert len(set(found)) == len(found)
    assert len(union) > MOST or set(found) == union
    is_depth_first(merged)
    for path, proposers in zip(found, merged.proposers, strict=True):
        assert proposers == sum(1 << nth for nth, tree in enumerate(trees) if path in paths(tree))


def test_a_tree_has_at_most_as_many_nodes_as_a_mask_has_bits() -> None:
    tree = expand([], [4, 4, 4, 4], lambda text, count: range(count))
    assert len(tree) == MOST
    assert max(tree.masks) < 1 << 64


@given(tries, st.randoms(use_true_random=False))
def test_greedy_takes_the_longest_path_that_the_model_takes(continuations: list[list[int]], draw: Any) -> None:
    tree = planted(continuations)
    choices = [draw.randint(0, 3) for _ in range(len(tree) + 1)]
    said = [tuple(paths(tree)[node]) for node in greedy(tree, choices)]
    right = [
        path
        for node, path in enumerate(paths(tree))
        if all(
            choices[above + 1] == tree.tokens[below]
            for below, above in enumerate(tree.parents)
            if tree.masks[node] >> below & 1
        )
    ]
    assert said == sorted(right, key=len)


def test_ranks_and_moves() -> None:
    tree = planted([[0, 0], [1, 2, 3], [1, 3]])  # nodes: 0, 0-0, 1, 1-2, 1-2-3, 1-3
    nodes = accepted(tree, lambda node: [1, None, None, 2, 3, 9, None][node + 1])
    assert nodes == [2, 3, 4]
    assert ranks(tree, nodes, [1, 2, 3, 7]) == [(2, 1), (2, 0), (1, 0)]
    assert ranks(tree, [2], [1, 9]) == [(2, 1), (2, -1)]
    assert moves([7, 5, 9], 4, 3, nodes) == [(5, 1, 7, 3), (5, 2, 5, 0), (5, 3, 5, 1)]
    assert moves([7, 5, 9], 4, 3, [0, 1]) == []


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(1, 3))
def test_ngrams_are_what_brute_force_finds(text: list[int], count: int) -> None:
    index = Ngrams(longest=3, shortest=1)
    for end in range(1, len(text) + 1):  # as it grows
        index.draft(text[:end], [1])
    found: list[int] = []
    for length in (3, 2, 1):
        if length > len(text):
            continue
        after = [text[at] for at in range(length, len(text)) if text[at - length : at] == text[-length:]]
        counts = Counter(after)
        latest = {token: at for at, token in enumerate(after)}
        order = sorted(counts, key=lambda token: (counts[token], latest[token]), reverse=True)
        found += [token for token in order[:count] if token not in found]
        if len(found) >= count:
            break
    assert index.likely(text, count) == found[:count]


def test_repetition_is_guessed() -> None:
    words = [5, 6, 7, 8, 9, 10]
    tree = Ngrams().draft([*words, 1, 2, *words, 3, 4, 5, 6], [1, 1, 1, 1, 2])
    assert paths(tree)[-2:] == [(7, 8, 9, 10, 3), (7, 8, 9, 10, 1)]
