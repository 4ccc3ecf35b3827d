"""Guessing ahead: trees, what holds of them, what pays, and engines whose answers stay the same to the token."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import erfc, inf, sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nubes.drivers.sim.guessing import Guessing
from nubes.drivers.sim.llm import Instance, Served, simulate_llm
from nubes.kernel.errors import UsageError
from nubes.kernel.policy import make
from nubes.llm.policies.specinfer import PROBE, TokenTrees
from nubes.llm.scheduling.invariants import check
from nubes.llm.scheduling.load import Load
from nubes.llm.scheduling.scheduler import Scheduler
from nubes.llm.scheduling.state import State
from nubes.llm.seams import Speculation
from nubes.llm.speculative.ngrams import Ngrams
from nubes.llm.speculative.planner import Hits, Times, best, expected, size
from nubes.llm.speculative.stepping import moves, ranks
from nubes.llm.speculative.tree import MOST, ROOT, Tree, expand, merge
from nubes.llm.speculative.verify import accepted, greedy, multi_step, sampled
from nubes.papers.specinfer import TREE
from nubes.workloads.llm import LLMWorkload
from tests.llm.toy import ask, engine, following, plain

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


# -- what pays --------------------------------------------------------------------------------------------------------


def test_expected_tokens() -> None:
    hits = [[0.5, 0.25], [0.5, 0.25], [0.5, 0.25]]
    assert size((1, 1, 3, 1)) == 1 + 1 + 3 + 3
    assert expected((), hits) == 1.0
    assert expected((1, 2), hits) == pytest.approx(1 + 0.5 + 0.5 * 0.75)
    assert expected((2, 1, 1), hits) == pytest.approx(1 + 0.75 + 0.75 * 0.5 + 0.75 * 0.25)


@given(st.floats(0.0, 0.9), st.floats(0.0, 2.0), st.integers(1, 16))
@settings(deadline=None, max_examples=30)
def test_the_best_tree_is_the_best(rate: float, row: float, batch: int) -> None:
    hits = [[rate, (1 - rate) / 3]] * 4

    def seconds(rows: int) -> float:
        return 10.0 + max(0, rows - 4) * row

    every = [of for depth in range(5) for of in product((1, 2), repeat=depth) if size(of) <= 10]
    rates = {of: expected(of, hits) / seconds(batch * (1 + size(of))) for of in every}
    chosen = best(batch, hits, seconds, 4, 2, 10)
    assert rates[chosen] == pytest.approx(max(rates.values()))


def test_nothing_is_guessed_where_rows_cost_what_they_give() -> None:
    hits = [[0.6, 0.1, 0.05]] * 8
    assert best(8, hits, lambda rows: float(rows), 8, 3, 24) == ()
    assert best(1, hits, lambda rows: 1.0, 8, 3, 24) != ()
    assert best(1, [[0.0] * 3] * 8, lambda rows: 1.0 + rows * 1e-6, 8, 3, 24) == ()


def test_times_lie_on_lines_between_what_was_tried() -> None:
    times = Times(weight=0.5)
    assert times.seconds(3) == inf
    times.ran(2, 1.0)
    assert [times.seconds(rows) for rows in (4, 5)] == [1.0, inf]
    times.ran(6, 3.0)
    assert [times.seconds(rows) for rows in (1, 2, 4, 6, 10, 12, 13)] == [1.0, 1.0, 2.0, 3.0, 5.0, 6.0, inf]
    times.ran(2, 2.0)
    assert times.seconds(2) == 1.5
    assert times.knows(2)
    assert not times.knows(3)
    times.ran(101, 5.0)
    assert times.knows(99)


def test_hits_are_told_from_trials() -> None:
    hits = Hits(depth=2, width=2)
    for _ in range(2000):
        hits.verified([(2, 1), (1, 0)])
        hits.verified([(2, -1)])
    (first, second), (third, fourth) = hits.rates
    assert first == pytest.approx(0.0, abs=0.01)
    assert second == pytest.approx(0.5, abs=0.02)
    assert third == pytest.approx(1.0, abs=0.01)
    assert fourth == 0.2  # never offered, so still what it was taken for


@pytest.mark.parametrize("per_row", [0.0, 1.0])
def test_the_planner_finds_out_what_pays(per_row: float) -> None:
    """With free rows most steps guess; where each row costs as much as a step nearly none does. Both are still tried."""
    policy, state = TokenTrees(), State(64, 16)
    state.decoding = dict.fromkeys(range(8))  # type: ignore[arg-type]
    steps: Counter[bool] = Counter()
    draw = random.Random(0)
    for _ in range(2000):
        load = Load.of(contexts=[50] * 8)
        widths = policy.widths(state, load)
        load.guesses = 8 * size(widths)
        load.decodes += load.guesses
        if widths:
            for _ in range(8):
                deep = next((at for at in range(len(widths)) if draw.random() > 0.6), len(widths))
                policy.verified([(width, 0) for width in widths[:deep]] + [(of, -1) for of in widths[deep : deep + 1]])
        policy.ran(load, 1.0 + per_row * load.decodes)
        steps[bool(widths)] += 1
    assert steps[not per_row] > 0.9 * 2000
    assert steps[bool(per_row)] >= 2000 // (PROBE + 2) - 1
    assert policy.widths(state, Load.of([(16, 0)], [50] * 8)) == ()


@pytest.mark.parametrize("text", ["specinfer(widths=3x0)", "specinfer(widths=8x8x8)", "specinfer(depth=9,nodes=8)"])
def test_no_such_tree(text: str) -> None:
    with pytest.raises(UsageError, match="tree"):
        make("speculation", text)


# -- engines ----------------------------------------------------------------------------------------------------------


class Oracle(Speculation):
    """Guesses that are right about two times in three, at any rank. Checks the engine after every step."""

    def __init__(self, widths: tuple[int, ...], seed: int = 0) -> None:
        self.given, self.random = widths, random.Random(seed)
        self.state: State | None = None
        self.deepest, self.held = 0, Counter[int]()

    def widths(self, state: State, load: Load) -> tuple[int, ...]:
        self.state = state
        return self.given if self.random.random() < 0.8 else ()

    def draft(self) -> Oracle:  # type: ignore[override]
        return _Guessing(self)  # type: ignore[return-value]

    def verified(self, path: Sequence[tuple[int, int]]) -> None:
        self.held.update(rank for _, rank in path)
        self.deepest = max(self.deepest, sum(rank >= 0 for _, rank in path))

    def ran(self, load: Load, seconds: float) -> None:
        if self.state is not None:
            check(self.state)


class _Guessing:
    def __init__(self, oracle: Oracle) -> None:
        self.random = oracle.random

    def draft(self, text: Sequence[int], widths: Sequence[int]) -> Tree:
        def likely(path: Sequence[int], count: int) -> list[int]:
            guesses = self.random.sample(range(10, 210), count)
            right = following(path)
            if self.random.random() < 0.7 and right not in guesses:
                guesses[self.random.randrange(count)] = right
            return guesses

        return expand(text, widths, likely)


def run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 120))


@pytest.mark.parametrize("widths", [(1,), (1, 1, 1, 1), (3, 1, 1), (2, 2, 2), (1, 1, 3, 1, 1)])
def test_answers_are_those_of_plain_decoding(widths: tuple[int, ...]) -> None:
    async def day() -> None:
        oracle = Oracle(widths)
        async with engine(speculation=oracle, blocks=40, block_size=4) as made:
            prompts = [[20 + n, *range(30, 30 + n % 7)] for n in range(12)]
            counts = [1 + 5 * n % 31 for n in range(12)]
            answers = await asyncio.gather(*(ask(made, p, c) for p, c in zip(prompts, counts, strict=True)))
            shared = await ask(made, [5] * 9, 20, n=3)
            assert [answer for (answer,) in answers] == [plain(p, c) for p, c in zip(prompts, counts, strict=True)]
            assert shared == [plain([5] * 9, 20)] * 3
            assert made.scheduler.state.pool.used == 0
            assert oracle.deepest >= min(2, len(widths))
            assert len(widths) == 1 or made.runtime.steps < sum(counts)
            assert all(oracle.held[rank] for rank in range(-1, max(widths)))

    run(day())


def test_what_was_guessed_is_kept_for_others_as_it_should_be() -> None:
    """An answer's KV is found by the next request that begins with it, and gives the right tokens."""

    async def day() -> None:
        async with engine(speculation=Oracle((2, 2, 1)), block_size=4) as made:
            prompt = [40, 41, 42, 43, 44]
            (answer,) = await ask(made, prompt, 30)
            hits = made.stats().prefix_hits
            (more,) = await ask(made, prompt + answer, 20)
            assert more == plain(prompt + answer, 20)
            assert made.stats().prefix_hits - hits >= 28

    run(day())


def test_random_answers_and_penalties_are_those_of_plain_decoding() -> None:
    """A guess holds if it is what would have been chosen: the same random numbers give the same answer."""

    async def day() -> None:
        for sampling in (
            {"temperature": 1.5, "seed": 3},
            {"temperature": 5.0, "seed": 4, "top_p": 0.9},
            {"frequency_penalty": 2.0},
            {"stop_token_ids": [plain([9, 9], 12)[-1]]},
        ):
            answers = []
            for speculation in ("off", Oracle((2, 2, 1))):
                async with engine(speculation=speculation) as made:
                    answers.append(await ask(made, [9, 9], 40, sampling=sampling))
            assert answers[0] == answers[1]

    run(day())


def test_a_nan_after_a_guess_fails_its_request_only() -> None:
    async def day() -> None:
        poison = plain([9, 9], 12)[-1]
        async with engine(speculation=Oracle((2, 1, 1)), poison=poison) as made:
            with pytest.raises(AssertionError, match="not a number"):
                await ask(made, [9, 9], 40)
            assert await ask(made, [3], 8) == [plain([3], 8)]

    run(day())


def test_policies_by_name() -> None:
    async def day() -> None:
        for text in ("sequence", "specinfer", "sequence(fixed=true,depth=4)", "specinfer(widths=3x1,shortest=1)"):
            async with engine(speculation=text) as made:
                prompt = list(range(20, 40)) * 2
                assert await ask(made, prompt, 60) == [plain(prompt, 60)]

    run(day())


# -- virtual time -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steady:
    """A step takes so long, and longer by the row."""

    step_s: float = 1.0
    row_s: float = 0.0
    name: str = "steady"
    kv_tokens: int = 4096
    kv_bytes: int = 1
    weight_bytes: int = 1
    gpu: str = "cpu"
    devices: int = 1
    stages: int = 1

    def seconds(self, load: Load) -> float:
        return self.step_s + self.row_s * load.rows

    def describe(self) -> str:
        return self.name


def simulated(
    speculation: str, batch: int, model: Steady, hits: list[list[float]], outputs: Sequence[int], blocks: int = 256
) -> tuple[Served, Guessing]:
    count = len(outputs)
    workload = LLMWorkload("few", "made", np.zeros(count), np.full(count, 10), np.array(outputs), 0.0)
    scheduler = Scheduler(blocks, batching=f"vllm(max_seqs={batch})", retention="none", speculation=speculation)
    guessing = Guessing(hits, 0.0, random.Random(0))
    instance = Instance(scheduler, model, guessing=guessing)
    served = simulate_llm(workload, [instance], watch=lambda instance, now: check(instance.scheduler.state))
    assert scheduler.idle
    assert scheduler.state.pool.used == 0
    return served, guessing


def test_guesses_that_always_hold_come_all_at_once() -> None:
    served, guessing = simulated("sequence(depth=4,fixed=true)", 2, Steady(), [[1.0]], [1, 2, 6, 11, 12])
    assert guessing.held == 4 + 8 + 8
    # A prompt's step is one second, two at a time; then five tokens a second, the first having come of the prompt.
    alone = [
        simulated("sequence(depth=4,fixed=true)", 1, Steady(), [[1.0]], [tokens])[0] for tokens in (1, 2, 6, 7, 11)
    ]
    assert [float(of.end_s[0]) for of in alone] == [1.0, 2.0, 2.0, 3.0, 3.0]
    assert served.gap_counts.sum() == sum(tokens - 1 for tokens in (1, 2, 6, 11, 12))


def test_everybody_gets_their_tokens_when_memory_is_short() -> None:
    outputs = [5 + 7 * n % 60 for n in range(60)]
    served, guessing = simulated("specinfer(widths=3x2x1)", 32, Steady(), [[0.5, 0.2, 0.1]], outputs, blocks=40)
    assert not np.isnan(served.end_s).any()
    assert served.preemptions > 5
    assert served.gap_counts.sum() == sum(outputs) - 60
    assert guessing.held / guessing.offered == pytest.approx(expected((3, 2, 1), [[0.5, 0.2, 0.1]] * 3) - 1, rel=0.15)


@pytest.mark.parametrize(("row_s", "batch"), [(0.0, 1), (0.0, 16), (0.02, 1), (0.05, 4), (0.05, 16), (1.0, 8)])
def test_the_planner_is_about_as_good_as_the_best_choice(row_s: float, batch: int) -> None:
    model, hits = Steady(1.0, row_s), [[0.6, 0.15, 0.05]]
    took = {
        text: simulated(text, batch, model, hits, [120] * 2 * batch)[0].seconds
        for text in ("off", "specinfer", "sequence(depth=2,fixed=true)", TREE, "specinfer(widths=2x1x1)")
    }
    assert took["specinfer"] < 1.1 * min(took.values()), took
