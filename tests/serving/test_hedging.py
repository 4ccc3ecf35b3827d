"""When copies go out, and fan-outs."""

from __future__ import annotations

from math import inf

import pytest

import nubes.serving.policies.tail_at_scale  # noqa: F401
from nubes.kernel.errors import UsageError
from nubes.kernel.policy import make
from nubes.serving.fanout import FanOut, slow_share


def test_nobody_hedges_before_it_knows_what_is_late():
    policy = make("hedging", "tail-at-scale(percentile=90)")
    for n in range(20):
        assert policy.delay_s(0.0) == inf
        policy.answered(n / 100, 0.0)
    assert policy.delay_s(0.0) == 0.18


def test_copies_wait_for_their_budget():
    policy = make("hedging", "tail-at-scale(delay=20ms,budget=0.25)")
    assert policy.delay_s(0.0) == 0.02
    for _ in range(5):
        assert policy.spend(1.0) == 1.0
    assert policy.spend(1.0) == 1.005
    for _ in range(4):
        policy.sent(1.0)
    assert policy.spend(1.005) == 1.005
    assert policy.spend(1.005) > 1.005


def test_tied_copies_go_at_once():
    policy = make("hedging", "tail-at-scale(tied=true)")
    assert (policy.tied, policy.copies, policy.delay_s(0.0)) == (True, 1, 0.001)
    assert all(policy.spend(2.0) == 2.0 for _ in range(1000))


def test_by_default_nobody_hedges():
    policy = make("hedging")
    assert (policy.name, policy.copies, policy.delay_s(0.0)) == ("none", 0, inf)


def test_a_percentile_is_one():
    with pytest.raises(UsageError, match="percentile"):
        make("hedging", "tail-at-scale(percentile=0)")


def test_what_waits_for_many_is_mostly_slow():
    assert slow_share(0.01, 100) == pytest.approx(0.634, abs=0.001)
    assert slow_share(0.0001, 2000) == pytest.approx(0.181, abs=0.001)


def test_all_leaves_are_asked_and_waited_for():
    fan = FanOut(3)
    assert list(fan.start(0.0)) == [0, 1, 2]
    for _ in range(2):
        assert not fan.answered(True, 1.0)
        assert not fan.done
    fan.answered(True, 1.0)
    assert fan.done
    assert fan.complete


def test_canaries_go_first():
    fan = FanOut(5, canaries=2, patience_s=1.0)
    assert list(fan.start(10.0)) == [0, 1]
    assert list(fan.answered(True, 10.5)) == []
    assert list(fan.answered(True, 10.6)) == [2, 3, 4]
    assert not fan.done


@pytest.mark.parametrize("late", [True, False])
def test_a_canary_that_dies_or_is_late_spares_the_others(late):
    fan = FanOut(5, canaries=1, patience_s=1.0)
    fan.start(10.0)
    assert fan.next_s() == 11.0
    if late:
        fan.expired(11.0)
    else:
        assert not fan.answered(False, 10.1)
    assert fan.done
    assert not fan.complete


def test_most_leaves_may_be_enough():
    fan = FanOut(20, enough=0.95)
    fan.start(0.0)
    for n in range(19):
        assert not fan.done, n
        fan.answered(True, 1.0)
    assert fan.done
    assert not fan.complete


def test_it_ends_at_its_deadline_or_when_nobody_is_left():
    fan = FanOut(2, deadline_s=3.0)
    fan.start(1.0)
    fan.answered(True, 2.0)
    fan.expired(3.9)
    assert not fan.done
    fan.expired(4.0)
    assert fan.done
    failed = FanOut(2, enough=1.0)
    failed.start(0.0)
    failed.answered(False, 0.1)
    assert not failed.done
    failed.answered(True, 0.2)
    assert failed.done
