"""Which tree pays: expected tokens, times and hits that are measured, and the policy that weighs them."""

from __future__ import annotations

import random
from collections import Counter
from itertools import product
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nubes.kernel.errors import UsageError
from nubes.kernel.policy import make
from nubes.llm.policies.specinfer import PROBE, TokenTrees
from nubes.llm.scheduling.load import Load
from nubes.llm.scheduling.state import State
from nubes.llm.speculative.planner import Hits, Times, best, expected, size


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
