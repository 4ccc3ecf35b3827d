"""Locality groups, two choices and the cross-region conductor."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nubes.functions.policies.xfaas_regions import Footprint, locality_groups, pull_fractions, shares, two_choices


class TestGroups:
    def test_heavy_functions_are_spread_and_workers_follow_the_load(self) -> None:
        functions = {
            "big": Footprint(8.0, 1.0),
            "hot": Footprint(1.0, 8.0),
            "x": Footprint(1.0, 1.0),
            "y": Footprint(1.0, 1.0),
        }
        first, second = locality_groups(functions, workers=11, groups=2)
        assert ("big" in first.functions) != ("hot" in first.functions)
        hot = first if "hot" in first.functions else second
        assert len(hot.workers) > 11 / 2

    @given(
        st.dictionaries(st.text(max_size=3), st.builds(Footprint, st.floats(0, 1e9), st.floats(0, 1e3)), min_size=1),
        st.integers(1, 30),
        st.integers(1, 8),
    )
    def test_every_function_and_worker_is_in_one_group(
        self, functions: dict[str, Footprint], workers: int, n: int
    ) -> None:
        groups = locality_groups(functions, workers, n)
        assert sorted(name for g in groups for name in g.functions) == sorted(functions)
        assert sorted(w for g in groups for w in g.workers) == list(range(workers))
        assert all(g.workers and len(groups) <= n for g in groups)

    @given(st.lists(st.floats(0, 100), min_size=1, max_size=10), st.integers(0, 50))
    def test_shares_add_up_and_leave_nobody_out(self, weights: list[float], more: int) -> None:
        dealt = shares(weights, len(weights) + more)
        assert sum(dealt) == len(weights) + more
        assert min(dealt) >= 1

    def test_shares_go_by_largest_remainder(self) -> None:
        assert shares([50.0, 30.0, 20.0], 9) == [4, 3, 2]  # 4.5, 2.7, 1.8


class TestTwoChoices:
    def test_takes_the_less_loaded_of_two(self) -> None:
        assert two_choices([7], {}, random.Random(0)) == 7
        for seed in range(20):
            assert two_choices([1, 2], {1: 5.0, 2: 3.0}, random.Random(seed)) == 2

    def test_is_far_better_balanced_than_one_choice(self) -> None:
        rng, two, one = random.Random(0), dict.fromkeys(range(50), 0.0), dict.fromkeys(range(50), 0.0)
        for _ in range(5000):
            two[two_choices(range(50), two, rng)] += 1.0
            one[rng.randrange(50)] += 1.0
        assert max(two.values()) <= 104
        assert max(one.values()) >= 115


class TestConductor:
    def test_even_regions_stay_local(self) -> None:
        assert pull_fractions([1.0, 2.0], [2.0, 4.0], [[0, 1], [1, 0]]) == [[1.0, 0.0], [0.0, 1.0]]

    def test_the_nearest_region_helps_first(self) -> None:
        # region 0 has 9 of capacity 4; 1 (near) and 2 (far) have none of 4 each: even is 3 each
        distance = [[0.0, 1.0, 5.0], [1.0, 0.0, 5.0], [5.0, 5.0, 0.0]]
        got = pull_fractions([9.0, 0.0, 0.0], [4.0, 4.0, 4.0], distance)
        assert [row[0] for row in got] == pytest.approx([1 / 3, 1 / 3, 1 / 3])
        # with 2 at its share already all of it goes to the near one
        got = pull_fractions([6.0, 0.0, 3.0], [4.0, 4.0, 4.0], distance)
        assert [row[0] for row in got] == pytest.approx([0.5, 0.5, 0.0])

    @given(st.lists(st.tuples(st.floats(0.1, 100), st.floats(0.1, 100)), min_size=1, max_size=6), st.randoms())
    def test_everything_is_pulled_once_and_all_are_even(
        self, regions: list[tuple[float, float]], rng: random.Random
    ) -> None:
        demand, capacity = [d for d, _ in regions], [c for _, c in regions]
        n = range(len(regions))
        pulled = pull_fractions(demand, capacity, [[rng.random() for _ in n] for _ in n])
        for j in n:
            assert sum(pulled[i][j] for i in n) == pytest.approx(1.0)
            assert all(pulled[i][j] >= -1e-9 for i in n)
        mean = sum(demand) / sum(capacity)
        for i in n:
            assert sum(pulled[i][j] * demand[j] for j in n) == pytest.approx(mean * capacity[i])
