"""What replicas and choosers learn from the recent past."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nubes.serving.estimates import Budget, LatencyByLoad, Window


def test_latency_is_the_median_near_the_load():
    known = LatencyByLoad(samples=4)
    assert known.at(3, 0.0) == 0.0
    for tag, latency_s in ((2, 1.0), (2, 3.0), (2, 2.0), (5, 9.0)):
        known.add(tag, latency_s, 0.0)
    assert known.at(2, 0.0) == 2.0
    assert known.at(5, 0.0) == 3.0  # 9 alone is too little: with tag 2 it is 1, 2, 3, 9
    known.add(5, 7.0, 0.0)
    assert known.at(5, 0.0) == 9.0  # 7 and 9
    assert known.at(100, 0.0) == 9.0


def test_old_latencies_give_way():
    known = LatencyByLoad(samples=2)
    for latency_s in (1.0, 1.0, 8.0, 8.0):
        known.add(0, latency_s, 0.0)
    assert known.at(0, 0.0) == 8.0


def test_what_was_long_ago_is_forgotten():
    known = LatencyByLoad(age_s=2.0)
    known.add(0, 5.0, 10.0)
    assert known.at(0, 12.0) == 5.0
    assert known.at(0, 12.1) == 0.0
    known.add(0, 1.0, 13.0)
    assert known.at(0, 13.0) == 1.0


@given(st.lists(st.integers(0, 9), min_size=1), st.integers(1, 5), st.floats(0.0, 1.0))
def test_a_window_has_the_quantiles_of_its_latest(values, size, q):
    window = Window(size)
    for value in values:
        window.add(value)
    kept = sorted(values[-size:])
    found = window.quantile(q)
    assert found in kept
    assert sum(value <= found for value in kept) >= q * len(kept)
    assert sum(value < found for value in kept) <= q * len(kept)


def test_a_budget_is_earned_by_events():
    budget = Budget(0.25, burst=2.0, first=1.0)
    assert budget.spend()
    assert not budget.spend()
    for _ in range(4):
        budget.earn()
    assert budget.spend()
    for _ in range(100):
        budget.earn()
    assert [budget.spend() for _ in range(3)] == [True, True, False]
