"""Replicated services in virtual time, against brute force and arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nubes.serving.policies.prequal
import nubes.serving.policies.tail_at_scale  # noqa: F401
from nubes.drivers.sim.serving import simulate_balancing, simulate_leaves
from nubes.drivers.sim.serving.replica import Shared
from nubes.kernel.policy import make, policies
from nubes.serving.fanout import slow_share
from nubes.serving.models import Demand, Leaf, Machines, Tree
from nubes.serving.texts import seeded

ALL = sorted(cls.name for cls in policies("balancing") if cls.name != "latest")  # which sticks to few


def shared(cores: float, jobs: list[tuple[float, float]]) -> list[float]:
    """When each (arrival, work) ends, in steps so small that it does not matter how they are ordered within one."""
    left, ends, step = [work for _, work in jobs], [0.0] * len(jobs), 1e-3
    now = 0.0
    while any(work > 0.0 for work in left):
        held = [n for n, (at, _) in enumerate(jobs) if at <= now and left[n] > 0.0]
        for n in held:
            left[n] -= step * min(1.0, cores / len(held))
            ends[n] = now + step
        now += step
    return ends


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.0, 1.0), st.floats(0.05, 0.5)), min_size=1, max_size=6), st.sampled_from([1.0, 2.5])
)
def test_processors_are_shared(jobs, cores):
    jobs.sort()
    replica, ends, next_job = Shared(cores, 1.0), [0.0] * len(jobs), 0
    while next_job < len(jobs) or replica.rif:
        if next_job < len(jobs) and jobs[next_job][0] <= replica.due:
            replica.take(next_job, jobs[next_job][1], jobs[next_job][0])
            next_job += 1
        else:
            at = replica.due
            ends[replica.done(at)] = at
    assert ends == pytest.approx(shared(cores, jobs), abs=0.02)


def test_what_is_given_up_takes_no_more():
    replica = Shared(1.0, 1.0)
    replica.take(0, 1.0, 0.0)
    replica.take(1, 2.0, 0.0)
    assert replica.due == pytest.approx(2.0)
    replica.drop(0, 1.0)
    assert replica.due == pytest.approx(2.5)  # half a second of its work is done by 1.0
    replica.becomes(0.5, 1.5)
    assert replica.due == pytest.approx(3.5)
    assert replica.done(3.5) == 1


@pytest.mark.parametrize("name", ALL)
def test_every_request_is_answered_or_late(name):
    machines, demand = Machines(replicas=6, cores=2.0), Demand(0.8, 3.0, clients=4)
    done, again = (
        simulate_balancing(machines, demand, lambda client: seeded("balancing", name, client), 3) for _ in range(2)
    )
    assert np.array_equal(done.latency_s, again.latency_s)
    assert (done.latency_s <= demand.deadline_s).all()
    assert (done.latency_s[~done.ok] == demand.deadline_s).all()
    assert done.ok.mean() > 0.5
    assert (done.latency_s >= 2 * demand.network_s - 1e-9).all()
    assert set(done.replica) <= set(range(6))


def test_too_much_load_is_late():
    machines, demand = Machines(replicas=2, cores=1.0, full=1.0), Demand(2.0, 20.0, clients=2, deadline_s=1.0)
    done = simulate_balancing(machines, demand, lambda client: seeded("balancing", "round-robin", client))
    assert 0.2 < 1.0 - done.ok.mean() < 0.9


def test_synchronous_probes_are_waited_for():
    machines, demand = Machines(replicas=8), Demand(0.5, 2.0, clients=3)
    done = simulate_balancing(machines, demand, lambda client: seeded("balancing", "prequal(sync=true)", client))
    assert done.ok.all()
    assert (done.latency_s >= 4 * demand.network_s - 1e-9).all()


def test_prequal_leaves_slow_replicas_alone():
    machines, demand = Machines(replicas=20, slow=0.5, slowdown=4.0, full=1.0), Demand(0.6, 5.0, clients=10)
    counts = {}
    for name in ("round-robin", "prequal"):
        done = simulate_balancing(machines, demand, lambda client, name=name: seeded("balancing", name, client))
        counts[name] = (done.replica < 10).mean()
    assert counts["prequal"] < 0.5 * counts["round-robin"]


# -- fan-out ---------------------------------------------------------------------------------------------------------


def test_stalls_are_amplified_as_arithmetic_says():
    tree, leaf = Tree(leaves=20, requests=2000), Leaf(stalls=0.02)
    done = simulate_leaves(tree, leaf, make("hedging", "none"))
    assert (done.latency_s > 0.5).mean() == pytest.approx(slow_share(0.02, 20), abs=0.04)
    assert (done.asked, done.copies, done.doubled) == (40_000, 0, 0)
    assert len(done.leaf_latency_s) == 40_000


@pytest.mark.parametrize("text", ["none", "tail-at-scale", "tail-at-scale(tied=true)", "tail-at-scale(delay=1ms)"])
@pytest.mark.parametrize("queues", [True, False])
def test_everything_is_answered_once(text, queues):
    tree, leaf = Tree(leaves=5, requests=300, rate=20.0), Leaf(stalls=0.01, queues=queues)
    done, again = (simulate_leaves(tree, leaf, make("hedging", text), 5) for _ in range(2))
    assert np.array_equal(done.latency_s, again.latency_s)
    assert (done.answered == 5).all()
    assert len(done.leaf_latency_s) == done.asked == 1500
    assert done.doubled <= done.copies <= done.asked * (1 if "tied" in text else 0.06)


def test_hedging_hides_stalls():
    tree, leaf = Tree(leaves=20, requests=1000), Leaf(stalls=0.02)
    hedged = simulate_leaves(tree, leaf, make("hedging", "tail-at-scale"))
    assert np.quantile(hedged.latency_s, 0.99) < 0.5
    assert hedged.copies <= 0.06 * hedged.asked


def test_one_copy_goes_to_each_replica_at_most():
    tree, leaf = Tree(leaves=2, requests=200), Leaf(stalls=1.0, replicas=3)
    done = simulate_leaves(tree, leaf, make("hedging", "tail-at-scale(delay=1ms,budget=2,copies=2)"))
    assert done.copies == 2 * done.asked


def test_most_of_the_answers_may_be_enough():
    tree, leaf = Tree(leaves=20, requests=300, enough=0.9), Leaf(stalls=0.01)
    done = simulate_leaves(tree, leaf, make("hedging", "none"))
    assert (done.answered == 18).all()
    assert np.quantile(done.latency_s, 0.9) < 0.5
    late = simulate_leaves(Tree(leaves=20, requests=300, deadline_s=0.02), leaf, make("hedging", "none"))
    assert late.latency_s.max() <= 0.02 + 1e-9
    assert late.answered.max() <= 20


def test_canaries_that_stall_stop_the_request():
    tree, leaf = Tree(leaves=10, requests=300, canaries=1, patience_s=0.5), Leaf(stalls=0.3)
    done = simulate_leaves(tree, leaf, make("hedging", "none"))
    stopped = done.answered == 0
    assert stopped.mean() == pytest.approx(0.3, abs=0.1)
    assert done.asked == 300 + 9 * (~stopped).sum()
