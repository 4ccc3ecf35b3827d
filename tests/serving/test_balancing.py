"""Balancing policies, on cases worked out by hand."""

from __future__ import annotations

from collections import Counter

import pytest

import nubes.serving.policies.prequal
import nubes.serving.policies.tail_at_scale  # noqa: F401  (so that they are on their seams)
from nubes.kernel.errors import UsageError
from nubes.kernel.policy import make, policies
from nubes.serving.policies.prequal import Prequal
from nubes.serving.policies.simple import WeightedRoundRobin
from nubes.serving.policies.tail_at_scale import Probation
from nubes.serving.seams import Balancing, Probe, ReplicaView, Report
from nubes.serving.texts import seeded

ALL = sorted(cls.name for cls in policies("balancing") if cls.name != "latest")  # which sticks to few


def replicas(n: int) -> list[ReplicaView]:
    return [ReplicaView(id) for id in range(n)]


def serve(policy: Balancing, views: list[ReplicaView], n: int, latency_s: float = 0.1) -> Counter[int]:
    """`n` requests, each answered before the next; probes are answered at once."""
    counts: Counter[int] = Counter()
    for number in range(n):
        now = number * 0.01
        for view in policy.probes(views, now):
            policy.probed(view, view.rif, latency_s, now)
        chosen = policy.choose([view for view in views if view.open], now)
        counts[chosen.id] += 1
        chosen.sent(now)
        policy.sent(chosen, now)
        chosen.answered(latency_s, now)
        policy.answered(chosen, True, latency_s, now)
    return counts


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n", [1, 2, 7])
def test_every_policy_uses_the_open_replicas_and_only_those(name, n):
    policy, views = seeded("balancing", name, 1), replicas(n + 1)
    views[0].open = False
    counts = serve(policy, views, 300)
    assert set(counts) == {view.id for view in views[1:]}


@pytest.mark.parametrize("name", ALL)
def test_the_same_seed_chooses_the_same(name):
    one, other, third = (serve(seeded("balancing", name, seed), replicas(5), 50) for seed in (1, 1, 2))
    assert one == other
    assert sum(third.values()) == 50


@pytest.mark.parametrize("name", ALL)
def test_a_replica_that_left_is_forgotten(name):
    policy, views = seeded("balancing", name, 1), replicas(4)
    serve(policy, views, 40)
    policy.left(views[0])
    assert 0 not in serve(policy, views[1:], 100)


def test_round_robin_takes_turns():
    policy, views = make("balancing", "round-robin"), replicas(4)
    first = policy.choose(views, 0.0).id
    assert [policy.choose(views, 0.0).id for _ in range(5)] == [(first + k) % 4 for k in range(1, 6)]


def test_weighted_round_robin_goes_by_rate_over_utilisation():
    policy, views = WeightedRoundRobin(smoothing=1.0), replicas(3)
    for view, rate, used in zip(views, (10.0, 20.0, 10.0), (0.5, 0.5, 1.0), strict=True):  # weights 20, 40, 10
        policy.reported(view, Report(0, rate, used), 0.0)
    counts = Counter(policy.choose(views, 0.0).id for _ in range(700))
    assert counts[0] == pytest.approx(200, abs=2)
    assert counts[1] == pytest.approx(400, abs=2)
    assert counts[2] == pytest.approx(100, abs=2)


def test_loads_are_compared():
    views = replicas(3)
    for view, rif in zip(views, (5, 1, 3), strict=True):
        view.rif = rif
    assert make("balancing", "least-loaded").choose(views, 0.0).id == 1
    pair = views[:2]
    assert {make("balancing", f"two-choices(seed={seed})").choose(pair, 0.0).id for seed in range(9)} == {1}
    yarp = make("balancing", "yarp")
    yarp.reported(views[1], Report(9, 1.0, 1.0), 0.0)
    assert yarp.choose(pair, 0.0).id == 0


# -- Prequal ---------------------------------------------------------------------------------------------------------


def pooled(policy: Prequal, views: list[ReplicaView], *said: tuple[int, float], now: float = 0.0) -> Prequal:
    policy.replicas = len(views)
    for view, (rif, latency_s) in zip(views, said, strict=True):
        policy.probed(view, rif, latency_s, now)
    return policy


def test_the_fastest_of_the_cold_is_chosen():
    views = replicas(4)
    policy = pooled(Prequal(q=0.5), views, (1, 0.3), (2, 0.2), (9, 0.1), (9, 0.1))
    assert policy.limit == 9  # the third of 1, 2, 9, 9
    policy = pooled(Prequal(q=0.4), views, (1, 0.3), (2, 0.2), (9, 0.1), (9, 0.1))
    assert policy.limit == 2
    assert policy.choose(views, 0.0).id == 1


def test_of_the_hot_the_least_loaded_is_chosen():
    views = replicas(3)
    policy = pooled(Prequal(q=0.0), views, (5, 0.1), (3, 0.9), (4, 0.1))
    assert policy.choose(views, 0.0).id == 1


def test_latency_alone_decides_at_q_1():
    views = replicas(3)
    assert pooled(Prequal(q=1.0), views, (5, 0.1), (3, 0.9), (4, 0.2)).choose(views, 0.0).id == 0


def test_what_was_sent_counts_at_once():
    views = replicas(3)
    policy = pooled(Prequal(q=0.0, remove=0), views, (1, 0.1), (2, 0.1), (9, 0.1))
    policy.pool[0].left = 9
    assert [policy.choose(views, 0.0).id for _ in range(3)] == [0, 0, 1]


def test_answers_leave_the_pool():
    views = replicas(100)
    policy = Prequal(remove=0, age=1.0)
    pooled(policy, views[:20], *[(n, 0.1) for n in range(20)])
    assert [entry.replica.id for entry in policy.pool] == list(range(4, 20))  # 16, the latest
    policy.probed(views[5], 0, 0.2, 0.5)
    assert len(policy.pool) == 16
    assert policy.pool[-1].replica.id == 5  # the fresher answer of the same replica takes its place
    policy.choose(views, 1.2)
    assert all(entry.at == 0.5 for entry in policy.pool)


def test_answers_are_used_as_often_as_keeps_the_pool_full():
    policy = Prequal()
    policy.replicas = 100  # 2 / ((1 - 0.16) * 3 - 1) = 1.316
    uses = [policy._uses() for _ in range(4000)]
    assert set(uses) == {1, 2}
    assert sum(uses) / len(uses) == pytest.approx(1.316, abs=0.03)
    policy.replicas = 4  # none is ever short
    assert policy._uses() == float("inf")


def test_the_oldest_and_the_worst_leave_in_turn():
    views = replicas(100)
    policy = Prequal(q=0.5, remove=0)
    pooled(policy, views[:6], (3, 0.1), (1, 0.1), (9, 0.1), (2, 0.8), (1, 0.2), (1, 0.3))
    policy.remove = 1
    policy._remove()
    assert [entry.replica.id for entry in policy.pool] == [1, 2, 3, 4, 5]
    policy._remove()  # 9 in flight is hot
    assert [entry.replica.id for entry in policy.pool] == [1, 3, 4, 5]
    policy._remove()
    policy.pool = policy.pool[:3]
    policy.recent.add(2)
    policy.recent.add(2)
    policy._remove()
    assert 3 not in [entry.replica.id for entry in policy.pool]  # all are cold now: the slowest


def test_probes_may_be_a_fraction():
    policy, views = Prequal(probes=2.5), replicas(50)
    asked = [policy.probes(views, 0.0) for _ in range(2000)]
    assert {len(one) for one in asked} == {2, 3}
    assert sum(map(len, asked)) / 2000 == pytest.approx(2.5, abs=0.05)
    assert all(len({view.id for view in one}) == len(one) for one in asked)


def test_without_probes_the_choice_is_any():
    views = replicas(8)
    policy = Prequal()
    policy.replicas = 8
    assert len({policy.choose(views, 0.0).id for _ in range(100)}) == 8


def test_fast_errors_draw_no_traffic():
    views = replicas(4)
    policy = Prequal()
    for _ in range(20):
        views[0].sent(0.0)
        views[0].answered(0.001, 0.0)
        policy.answered(views[0], False, 0.001, 0.0)
    pooled(policy, views, (0, 0.001), (2, 0.1), (2, 0.1), (2, 0.1))
    assert policy.choose(views, 0.0).id != 0
    pooled(policy, views, (0, 0.001), (2, 0.1), (2, 0.1), (2, 0.1), now=60.0)
    assert policy.choose(views, 60.0).id == 0  # by now it is forgotten


def test_synchronous_probes_decide_themselves():
    views = replicas(4)
    policy = Prequal(probes=3, sync=True, q=0.0)
    assert policy.waits == 2
    policy.probed(views[3], 0, 0.1, 0.0)
    assert policy.pool == []
    assert policy.choose(views, 0.0, [Probe(views[1], 4, 0.1), Probe(views[2], 3, 0.1)]).id == 2
    assert policy.choose(views, 0.0, []).id in range(4)


def test_a_quantile_is_one():
    with pytest.raises(UsageError, match="quantile"):
        make("balancing", "prequal(q=2)")


# -- probation -------------------------------------------------------------------------------------------------------


def answer(policy: Probation, view: ReplicaView, latency_s: float, now: float, n: int = 8, ok: bool = True) -> None:
    for _ in range(n):
        policy.answered(view, ok, latency_s, now)


def test_a_slow_replica_goes_on_probation_and_comes_back():
    policy, views = Probation(), replicas(4)
    for view in views:
        answer(policy, view, 0.1, 0.0)
    answer(policy, views[2], 0.5, 1.0)
    assert policy.out == {2: 1.0}
    assert {policy.choose(views, 1.05).id for _ in range(100)} == {0, 1, 3}
    assert policy.shadow(views, 1.05) is None
    shadow = policy.shadow(views, 1.15)
    assert shadow is views[2]
    assert policy.shadow(views, 1.16) is None  # one at a time
    answer(policy, views[2], 0.5, 2.0)
    assert policy.out
    answer(policy, views[2], 0.1, 3.0)
    assert not policy.out
    assert {policy.choose(views, 3.0).id for _ in range(100)} == {0, 1, 2, 3}


def test_without_shadows_it_is_tried():
    policy, views = Probation(), replicas(4)
    for view in views:
        answer(policy, view, 0.1, 0.0)
    answer(policy, views[2], 0.5, 0.0)
    chosen = [policy.choose(views, step / 10).id for step in range(41)]
    assert chosen.count(2) == 4


def test_not_everybody_is_on_probation():
    policy, views = Probation(), replicas(4)
    for view in views:
        answer(policy, view, 0.1, 0.0)
    for view, latency_s in zip(views, (1.0, 10.0, 100.0), strict=False):
        answer(policy, view, latency_s, 0.0)
    assert len(policy.out) <= 2


def test_quick_errors_count_as_slow():
    policy, views = Probation(), replicas(4)
    for view in views:
        answer(policy, view, 0.1, 0.0)
    answer(policy, views[1], 0.001, 0.0, ok=False)
    assert 1 in policy.out
