"""XFaaS on one machine, and the plain orders: by hand, and driven."""

from __future__ import annotations

import random
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cloud import Cloud

from nubes.functions import events as e
from nubes.functions.invariants import check
from nubes.functions.policies.edf import EarliestDeadline
from nubes.functions.policies.sjf import ShortestJob
from nubes.functions.policies.xfaas import XFaas
from nubes.functions.seams import CallView, FunctionView
from nubes.functions.spec import FunctionSpec

MIB = 2**20


def view(exec_s: float = 0.0, **spec: object) -> FunctionView:
    f = FunctionView("f", FunctionSpec(name="f", **{"cpu": 1.0, **spec}))  # type: ignore[arg-type]
    f.exec_s, f.queued = exec_s, 1000
    return f


def issue(policy: XFaas, f: FunctionView, now: float) -> int:
    """Issues all that may go at `now`; how many."""
    count = 0
    while policy.admit(f, now) <= now and count < 10_000:
        policy.issued(f, now)
        count += 1
    return count


class TestOrders:
    def test_xfaas_criticality_then_deadline(self) -> None:
        policy = XFaas()
        late = policy.order(view(criticality=1, quota="opportunistic"), CallView(1, 0.0))
        soon = policy.order(view(criticality=1), CallView(2, 5.0))
        low = policy.order(view(), CallView(3, 0.0))
        assert sorted([low, late, soon]) == [soon, late, low]

    def test_edf_goes_by_deadline_alone(self) -> None:
        policy = EarliestDeadline()
        assert policy.order(view(deadline_s=30.0), CallView(1, 10.0)) == (40.0,)
        assert policy.order(view(), CallView(1, 10.0)) == (15.0,)
        assert policy.order(view(quota="opportunistic"), CallView(1, 10.0)) == (86_410.0,)

    def test_sjf_goes_by_mean_run_time(self) -> None:
        policy = ShortestJob()
        assert policy.order(view(exec_s=1.0), CallView(1, 9.0)) < policy.order(view(exec_s=2.0), CallView(2, 1.0))

    @pytest.mark.parametrize(("queueing", "first"), [("fifo", "a"), ("edf", "b"), ("xfaas", "c")])
    def test_orders_decide_who_goes_when_cpu_is_short(self, queueing: str, first: str) -> None:
        specs = [
            FunctionSpec(name="a", cpu=1.0, deadline_s=100.0),
            FunctionSpec(name="b", cpu=1.0, deadline_s=10.0),
            FunctionSpec(name="c", cpu=1.0, deadline_s=50.0, criticality=1),
            FunctionSpec(name="busy", cpu=1.0),
        ]
        cloud = Cloud(specs, queueing=queueing, cpu=1.0, exec_s=5.0)
        for name, at in (("busy", 0.0), ("a", 1.0), ("b", 1.1), ("c", 1.2)):
            cloud.call(name, at)
        cloud.run(200.0)
        order = [name for _, name in sorted((cloud.dispatched(name)[0], name) for name in "abc")]
        assert order[0] == first
        assert len(cloud.dispatched()) == 4


class CheckedCloud(Cloud):
    """Everything that holds between two events is looked at after each."""

    def _handle(self, event: Any) -> None:
        super()._handle(event)
        assert check(self.controller) == []


def with_a_big_one(seed: int, patience_s: float, memory: bool, policy: str) -> dict[int, tuple[str, float, float]]:
    """Calls that need the whole machine among small ones of which one always runs: call -> function, arrival, dispatch."""
    draw = random.Random(seed)
    sizes: dict[str, tuple[float, int]] = {"big": (2.0, 128 * MIB), "a": (1.0, 128 * MIB), "b": (0.5, 128 * MIB)}
    if memory:
        sizes = {"big": (0.0, 1024 * MIB), "a": (0.0, 512 * MIB), "b": (0.0, 256 * MIB)}
    specs = [FunctionSpec(name=n, cpu=cpu, memory_bytes=size, max_instances=8) for n, (cpu, size) in sizes.items()]
    cloud = CheckedCloud(
        specs, queueing=f"{policy}(patience={patience_s})", keep_alive="no-unload", cpu=2.0, memory_bytes=1024 * MIB,
        cold_s=0.2, exec_s={"big": 0.5, "a": 1.0, "b": 1.5},
    )  # fmt: skip
    arrivals = [("big", draw.uniform(0.0, 250.0)) for _ in range(5)]
    at = 0.0
    while at < 300.0:
        arrivals.append((draw.choice("ab"), at))
        at += draw.uniform(0.6, 0.9)
    for function, at in arrivals:
        cloud.call(function, at)
    cloud.run()
    begun = {call: at for at, c in cloud.log if isinstance(c, e.Dispatch) for call in c.calls}
    return {n: (function, at, begun[n]) for n, (function, at) in enumerate(arrivals, 1)}


class TestPatience:
    def small_ones_and_a_big_one(self, patience: str, length_s: float, policy: str = "fifo") -> CheckedCloud:
        specs = [FunctionSpec(name="big", cpu=2.0), FunctionSpec(name="small", cpu=1.0)]
        cloud = CheckedCloud(specs, queueing=f"{policy}(patience={patience})", cpu=2.0, cold_s=0.0, exec_s=1.0)
        cloud.call("small", *(t * 0.7 for t in range(round(length_s / 0.7))))  # always one or two of them running
        cloud.call("big", 2.2)
        cloud.run()
        return cloud

    def test_with_patience_for_good_it_would_wait_for_as_long_as_small_ones_come(self) -> None:
        for length_s in (14.0, 140.0, 1400.0):
            (begun,) = self.small_ones_and_a_big_one("30d", length_s).dispatched("big")
            assert begun > length_s - 1.0

    @pytest.mark.parametrize("policy", ["fifo", "edf"])  # all deadlines are equally far away here
    def test_nothing_passes_who_has_waited_for_long(self, policy: str) -> None:
        cloud = self.small_ones_and_a_big_one("5s", 14.0, policy)
        assert cloud.dispatched("big") == [8.0]  # it is 5 s old at 7.2; what began at 7.0 ends at 8.0
        small = cloud.dispatched("small")
        assert small[:11] == [t * 0.7 for t in range(11)]  # up to 7.0 all pass, then none
        assert small[11:13] == [9.0, 9.0]

    @pytest.mark.parametrize("memory", [False, True], ids=["cpu", "memory"])
    @pytest.mark.parametrize("seed", range(10))
    @pytest.mark.parametrize("policy", ["fifo", "edf"])
    def test_no_function_starves(self, policy: str, seed: int, memory: bool) -> None:
        # Once it is as old as its patience only what came before goes before it: so much, and no more.
        calls = with_a_big_one(seed, 5.0, memory, policy).values()
        for _, came, begun in [call for call in calls if call[0] == "big"]:
            assert not [c for c in calls if c[1] > came and came + 5.0 < c[2] < begun]

    def test_a_call_in_line_that_is_cancelled_does_not_keep_its_place_for_the_next(self) -> None:
        specs = [FunctionSpec(name=n, cpu=2.0) for n in ("a", "b")] + [FunctionSpec(name="running", cpu=1.0)]
        cloud = CheckedCloud(specs, queueing="fifo(patience=1s)", cpu=2.0, cold_s=0.0, exec_s=100.0)
        cloud.call("running", 0.0)
        cloud.call("a", 1.0, 3.0)
        cloud.call("b", 2.0)
        cloud.run(50.0)
        cloud._handle(e.Cancelled(2))
        cloud.run()
        assert (cloud.dispatched("b"), cloud.dispatched("a")) == ([100.0], [200.0])


class TestQuota:
    def test_rate_is_quota_over_mean_cost(self) -> None:
        # 2 CPU-seconds a second, calls of 0.5 s on 2 CPUs: 2 calls a second
        policy = XFaas()
        f = view(exec_s=0.5, cpu=2.0, quota_cpu=2.0)
        assert issue(policy, f, 0.0) == 1  # one token to begin with
        assert policy.admit(f, 0.0) == 0.5
        assert issue(policy, f, 0.5) == 1
        assert issue(policy, f, 100.0) == 2  # a second's worth at once

    def test_a_slow_function_gets_its_turn(self) -> None:
        policy = XFaas()
        f = view(exec_s=10.0, quota_cpu=1.0)
        assert [issue(policy, f, t) for t in (0.0, 5.0, 10.0, 15.0, 20.0)] == [1, 0, 1, 0, 1]

    def test_without_quota_there_is_no_rate(self) -> None:
        assert issue(XFaas(slow_start=0), view(exec_s=1.0), 0.0) == 10_000

    def test_opportunistic_quota_is_scaled_and_reserved_is_not(self) -> None:
        policy = XFaas()
        policy.scale = 0.5
        reserved, opportunistic = (
            view(exec_s=1.0, quota_cpu=4.0),
            view(exec_s=1.0, quota_cpu=4.0, quota="opportunistic"),
        )
        assert policy.rate(reserved, policy._now(reserved, 0.0)) == 4.0
        assert policy.rate(opportunistic, policy._now(opportunistic, 0.0)) == 2.0
        policy.scale = 0.0
        assert policy.admit(opportunistic, 0.0) == inf
        assert policy.admit(view(quota="opportunistic"), 0.0) == inf
        assert policy.admit(reserved, 0.0) == 0.0

    def test_scale_rises_below_the_target_and_falls_above_down_to_nothing(self) -> None:
        policy = XFaas(target=0.7, gain=0.1)
        policy.utilisation = 0.35
        policy.tick(0.35, 0.0)
        assert policy.scale == pytest.approx(1.05)
        policy.utilisation = 0.85
        policy.tick(0.85, 10.0)
        assert policy.scale == pytest.approx(1.05 / 2)
        policy.utilisation = 1.0
        policy.tick(1.0, 20.0)
        assert policy.scale == 0.0
        for n in range(1000):
            policy.tick(0.0, 30.0 + n)
        assert policy.scale == 10.0

    def test_no_more_instances_start_than_calls_may_go(self) -> None:
        spec = FunctionSpec(name="f", cpu=1.0, quota_cpu=1.0, quota="opportunistic")
        cloud = Cloud([spec], queueing="xfaas", cpu=100.0, exec_s=1.0, cold_s=1.0)
        cloud.call("f", *([0.0] * 50))
        cloud.run(9.5)
        assert cloud.most == 1
        cloud.run(600.0)
        assert len(cloud.dispatched()) == 50

    def test_scores_tell_each_limit(self) -> None:
        policy = XFaas()
        scores = policy.scores("admit", view(exec_s=1.0, quota_cpu=4.0), 0.0)
        assert scores == [("quota", 4.0), ("callees", inf), ("slow start", 100), ("scale", 1.0)]


class TestSlowStart:
    def test_a_window_grows_by_a_fifth_of_the_one_before(self) -> None:
        policy = XFaas(slow_start=100, alpha=0.2)
        f = view()
        assert [issue(policy, f, 60.0 * n) for n in range(4)] == [100, 120, 144, 173]  # 172.8 is reached by the 173rd
        assert policy.admit(f, 200.0) == 240.0

    def test_a_window_without_calls_starts_over(self) -> None:
        policy = XFaas()
        f = view()
        assert [issue(policy, f, t) for t in (0.0, 60.0, 180.0)] == [100, 120, 100]


class TestBackPressure:
    def run_window(self, policy: XFaas, f: FunctionView, start: float, calls: int, failed: int) -> None:
        for n in range(calls):
            at = start + 60.0 * n / calls
            policy.issued(f, at)
            policy.finished(f, n >= failed, 0.1, "db" if n < failed else "", at)

    def test_the_rate_is_cut_once_a_callee_pushed_back_too_often_and_grows_again(self) -> None:
        policy = XFaas(slow_start=0, threshold=0.05, cut=0.5, add=0.05)
        f = view()
        self.run_window(policy, f, 0.0, 600, failed=31)  # 10 a second, more than 5 % pushed back
        assert policy._now(f, 60.0).ceiling == pytest.approx(5.0)
        self.run_window(policy, f, 60.0, 300, failed=0)
        assert policy._now(f, 120.0).ceiling == pytest.approx(5.5)  # 5 % of the 10 it had
        assert policy._now(f, 300.0).ceiling == pytest.approx(7.0)  # three windows later

    def test_up_to_the_threshold_nothing_happens(self) -> None:
        policy = XFaas(slow_start=0, threshold=0.05)
        f = view()
        self.run_window(policy, f, 0.0, 600, failed=30)
        assert policy._now(f, 60.0).ceiling == inf

    def test_growth_is_a_share_of_the_quota_where_there_is_one(self) -> None:
        policy = XFaas(slow_start=0)
        f = view(exec_s=0.1, quota_cpu=2.0)  # 20 calls a second
        self.run_window(policy, f, 0.0, 600, failed=300)
        assert policy._now(f, 60.0).ceiling == pytest.approx(5.0)
        assert policy._now(f, 120.0).ceiling == pytest.approx(6.0)

    def test_callees_count_one_by_one(self) -> None:
        policy = XFaas(slow_start=0, threshold=0.05)
        f = view()
        for n in range(100):
            policy.issued(f, n * 0.5)
            policy.finished(f, n >= 8, 0.1, ("db" if n % 2 else "cache") if n < 8 else "", n * 0.5)
        assert policy._now(f, 60.0).ceiling == inf  # 4 % each

    def test_a_function_that_floods_its_callee_is_slowed_down(self) -> None:
        spec = FunctionSpec(name="f", cpu=0.0)
        cloud = Cloud([spec], queueing="xfaas(window=10s)", exec_s=0.1, backpressure={"f": "db"})
        cloud.call("f", *(0.1 * n for n in range(1000)))
        cloud.run(100.0)
        first, later = (sum(a <= at < a + 10 for at in cloud.dispatched()) for a in (0.0, 40.0))
        assert later < first / 4


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 50)), max_size=60),
    st.sampled_from(["fifo", "edf", "sjf", "xfaas", "peak-shaving"]),
)
def test_every_call_runs_once_whatever_the_order(calls: list[tuple[str, float]], queueing: str) -> None:
    specs = [
        FunctionSpec(name="a", cpu=1.0, quota="opportunistic", quota_cpu=1.0),
        FunctionSpec(name="b", cpu=0.5, criticality=2, deadline_s=3.0, trigger="queue"),
        FunctionSpec(name="c", cpu=1.0, trigger="queue"),
    ]
    cloud = Cloud(specs, queueing=queueing, cpu=2.0, exec_s={"a": 0.5, "b": 0.1, "c": 2.0})
    for name, at in calls:
        cloud.call(name, at)
    cloud.run(3600.0)
    assert len(cloud.dispatched()) == len(calls)
    assert not cloud.controller.calls
