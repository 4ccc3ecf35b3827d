"""The hybrid histogram: its windows by hand, and its running figures against their plain definitions."""

from __future__ import annotations

from itertools import accumulate
from math import sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cloud import Cloud

from nubes.functions.events import COLD, WARM
from nubes.functions.policies.forecast import forecast
from nubes.functions.policies.hybrid_histogram import HybridHistogram
from nubes.functions.seams import FunctionView, Window
from nubes.functions.spec import FunctionSpec
from nubes.kernel.errors import UsageError

MINUTE = 60.0
STANDARD = Window(0.0, 240 * MINUTE)


def view(name: str = "f") -> FunctionView:
    return FunctionView(name, FunctionSpec(name=name))


def idle(policy: HybridHistogram, gaps: list[float], f: FunctionView | None = None, start: float = 0.0) -> FunctionView:
    """Calls that take no time, with `gaps` seconds between them."""
    f = f or view()
    for at in accumulate(gaps, initial=start):
        policy.arrived(f, at)
        f.last_arrival_s = f.last_end_s = at
        policy.window(f, at)
    return f


def window(policy: HybridHistogram, gaps: list[float]) -> Window:
    f = idle(policy, gaps)
    return policy.window(f, f.last_end_s)


class TestWindows:
    def test_unknown_is_kept_for_the_whole_range(self) -> None:
        assert HybridHistogram().window(view(), 0.0) == STANDARD
        assert window(HybridHistogram(), []) == STANDARD

    def test_a_single_gap_is_concentrated(self) -> None:
        got = window(HybridHistogram(), [30.5 * MINUTE])  # CV = sqrt(240 - 1)
        assert got.prewarm_s == pytest.approx(27 * MINUTE)
        assert got.prewarm_s + got.keep_s == pytest.approx(1.1 * 31 * MINUTE)

    def test_unloads_until_before_the_head_and_keeps_until_after_the_tail(self) -> None:
        # all gaps in bin 30: head 30 (its lower edge), tail 31 (its upper edge)
        got = window(HybridHistogram(), [30.5 * MINUTE] * 20)
        assert got.prewarm_s == pytest.approx(0.9 * 30 * MINUTE)
        assert got.prewarm_s + got.keep_s == pytest.approx(1.1 * 31 * MINUTE)

    def test_percentiles_leave_the_outliers_out(self) -> None:
        # 200 gaps: 9 of 5 min (4.5 %), 190 of 30 min, 1 of 100 min (0.5 %): head is bin 30, tail bin 30
        got = window(HybridHistogram(decay=1.0), [5 * MINUTE] * 9 + [30 * MINUTE] * 190 + [100 * MINUTE])
        assert got.prewarm_s == pytest.approx(27 * MINUTE)
        assert got.prewarm_s + got.keep_s == pytest.approx(1.1 * 31 * MINUTE)
        # 10 of 200 are 5 %, 2 of them 1 %
        got = window(HybridHistogram(decay=1.0), [5 * MINUTE] * 10 + [30 * MINUTE] * 187 + [100 * MINUTE] * 3)
        assert got.prewarm_s == pytest.approx(4.5 * MINUTE)
        assert got.prewarm_s + got.keep_s == pytest.approx(1.1 * 101 * MINUTE)

    @pytest.mark.parametrize(("bin", "prewarm_s"), [(0, 0.0), (1, 0.0), (2, 0.9 * 2 * MINUTE)])
    def test_does_not_unload_for_the_sake_of_one_bin(self, bin: int, prewarm_s: float) -> None:
        got = window(HybridHistogram(), [(bin + 0.5) * MINUTE] * 10)
        assert got.prewarm_s == pytest.approx(prewarm_s)
        assert got.prewarm_s + got.keep_s == pytest.approx(1.1 * (bin + 1) * MINUTE)

    def test_flat_is_kept_for_the_whole_range(self) -> None:
        # one gap in each of 60 of 240 bins: CV = sqrt(240 / 60 - 1) = 1.73; in each of 48: exactly 2
        assert window(HybridHistogram(), [bin * MINUTE for bin in range(60)]) == STANDARD
        assert window(HybridHistogram(), [bin * MINUTE for bin in range(48)]) != STANDARD
        assert window(HybridHistogram(cv=0.0), [bin * MINUTE for bin in range(60)]) != STANDARD

    def test_out_of_bounds_follows_a_forecast(self) -> None:
        gap = 300 * MINUTE
        got = window(HybridHistogram(), [gap] * 6)
        assert got.prewarm_s == pytest.approx(0.85 * gap)
        assert got.keep_s == pytest.approx(0.30 * gap)
        assert window(HybridHistogram(arima=False), [gap] * 6) == STANDARD

    def test_half_out_of_bounds_is_not_most(self) -> None:
        gaps = [30 * MINUTE] * 4 + [300 * MINUTE] * 4
        assert window(HybridHistogram(), gaps).prewarm_s == pytest.approx(27 * MINUTE)
        mixed = [*gaps, 300 * MINUTE]
        since_first_oob = [300 * MINUTE] * 5
        assert window(HybridHistogram(), mixed).prewarm_s == pytest.approx(0.85 * forecast(since_first_oob))

    def test_scores_tell_what_chose(self) -> None:
        policy = HybridHistogram()
        f = idle(policy, [30 * MINUTE] * 3 + [300 * MINUTE])
        scores = dict(policy.scores("window", f, f.last_end_s))
        assert scores["histogram"] == pytest.approx(sqrt(239))
        assert scores["forecast"] == 0.25
        assert scores["standard"] == pytest.approx(4)

    def test_refuses_what_makes_no_sense(self) -> None:
        with pytest.raises(UsageError):
            HybridHistogram(unit="user")
        with pytest.raises(UsageError):
            HybridHistogram(range="1s", bin="1m")


class TestIdleTime:
    def test_runs_from_the_end_of_an_execution_to_the_next_call(self) -> None:
        policy = HybridHistogram()
        f = view()
        policy.arrived(f, 0.0)
        f.last_end_s = 10 * MINUTE
        policy.arrived(f, 15 * MINUTE)
        assert policy.usages["f"].bins[5] == 1

    def test_a_call_beside_others_ends_none(self) -> None:
        policy = HybridHistogram()
        f = idle(policy, [0.0])
        before = policy.usages["f"].total
        f.busy = 1
        policy.arrived(f, 5 * MINUTE)
        f.busy, f.queued = 0, 1
        policy.arrived(f, 5 * MINUTE)
        assert policy.usages["f"].total == before

    def test_a_call_whose_predecessor_never_ended_counts_none(self) -> None:
        policy = HybridHistogram()
        f = view()
        policy.arrived(f, 0.0)
        policy.arrived(f, 5 * MINUTE)
        assert policy.usages["f"].total == 0

    def test_functions_of_one_app_share_it(self) -> None:
        policy = HybridHistogram()
        a, b = view("app/a"), view("app/b")
        idle(policy, [], a, start=0.0)
        idle(policy, [], b, start=30 * MINUTE)
        idle(policy, [], a, start=70 * MINUTE)
        usage = policy.usages["app"]
        assert (usage.bins[30], usage.bins[40], usage.total) == (1, 1, 2)
        assert policy.window(a, 0.0) == policy.window(b, 0.0)

    def test_or_do_not(self) -> None:
        policy = HybridHistogram(unit="function")
        idle(policy, [], view("app/a"), start=0.0)
        idle(policy, [], view("app/b"), start=30 * MINUTE)
        assert set(policy.usages) == {"app/a", "app/b"}

    def test_days_weigh_less_as_they_pass(self) -> None:
        # 30 gaps of 10 min on day 0, 30 of 50 min from day 7 on: at 0.5 a day the old ones weigh less than 1 %
        policy = HybridHistogram(decay=0.5)
        f = idle(policy, [10 * MINUTE] * 30)
        f = idle(policy, [50 * MINUTE] * 30, f, start=7 * 86_400.0 + 10 * MINUTE)
        share = 30 / (30 + 30 * 2**7 + 2)  # and the gap of a week, out of bounds
        assert share < 0.05
        assert policy.window(f, 0.0).prewarm_s == pytest.approx(45 * MINUTE)
        steady = HybridHistogram(decay=1.0)
        f = idle(steady, [50 * MINUTE] * 30, idle(steady, [10 * MINUTE] * 30), start=7 * 86_400.0 + 10 * MINUTE)
        assert steady.window(f, 0.0).prewarm_s == pytest.approx(9 * MINUTE)


BINS = 12


def plain(gaps: list[float], cv: float = 2.0, oob: float = 0.5) -> Window:
    """The definition, computed from scratch: bins of 1 s, range of 12 s, no decay, no forecast."""
    standard = Window(0.0, float(BINS))
    counts = [sum(int(gap) == bin for gap in gaps) for bin in range(BINS)]
    inside, outside = sum(counts), sum(gap >= BINS for gap in gaps)
    if not inside or outside > oob * len(gaps):
        return standard
    mean = inside / BINS
    if sum((c - mean) ** 2 for c in counts) / BINS < cv**2 * mean**2 * (1 - 1e-12):
        return standard
    head = next(bin for bin in range(BINS) if sum(counts[: bin + 1]) >= 0.05 * inside)
    tail = next(bin for bin in range(BINS) if sum(counts[: bin + 1]) >= 0.99 * inside)
    prewarm = 0.9 * head if head > 1 else 0.0
    return Window(prewarm, 1.1 * (tail + 1) - prewarm)


gap = st.one_of(st.sampled_from([0.0, 3.0, 7.0, 7.5, 11.0, 12.0]), st.floats(0, 16, allow_nan=False))


@settings(max_examples=300, deadline=None)
@given(st.lists(gap, max_size=80), st.sampled_from([0.0, 1.0, 2.0]))
def test_running_figures_equal_the_plain_definition(gaps: list[float], cv: float) -> None:
    policy = HybridHistogram(range=float(BINS), bin=1.0, cv=cv, arima=False, decay=1.0)
    f = view()
    policy.arrived(f, 0.0)
    now, seen = 0.0, []
    for gap in gaps:
        f.last_end_s = now
        now += gap
        seen.append(now - f.last_end_s)
        policy.arrived(f, now)
        got, want = policy.window(f, now), plain(seen, cv)
        assert (got.prewarm_s, got.keep_s) == pytest.approx((want.prewarm_s, want.keep_s))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 239), min_size=1, max_size=400))
def test_pointers_stand_where_a_scan_would(bins: list[int]) -> None:
    policy = HybridHistogram()
    idle(policy, [bin * MINUTE for bin in bins])
    usage = policy.usages["f"]
    for pointer in (usage.head, usage.tail):
        below = list(accumulate(usage.bins))
        assert pointer.bin == next(b for b in range(240) if below[b] >= pointer.share * usage.total)
        assert pointer.below == pytest.approx(below[pointer.bin] - usage.bins[pointer.bin])


class TestDriven:
    def test_loads_again_shortly_before_a_regular_call(self) -> None:
        spec = FunctionSpec(name="f", cpu=0.0)
        cloud = Cloud([spec], keep_alive="hybrid-histogram(range=240s,bin=1s)", cold_s=1.0, exec_s=0.0)
        cloud.call("f", *(60.0 * n + 0.5 for n in range(12)))
        cloud.run(12 * 60.0 - 1)
        assert cloud.how() == [COLD, *[WARM] * 11]
        # from the second call on it is unloaded at once and loaded 0.9 x 60 s after the call
        assert cloud.starts("f")[1:4] == pytest.approx([60.5 + 54, 120.5 + 54, 180.5 + 54], abs=1.0)
        assert [at for at, _ in cloud.stops()][:3] == pytest.approx([60.5, 120.5, 180.5], abs=1.5)

    def test_a_call_before_its_time_is_cold_and_cancels_the_prewarming(self) -> None:
        cloud = Cloud([FunctionSpec(name="f", cpu=0.0)], keep_alive="hybrid-histogram(range=240s,bin=1s)", exec_s=0.0)
        cloud.call("f", *(60.0 * n + 0.5 for n in range(12)), 11 * 60 + 10.0)
        cloud.run(11 * 60 + 58.0)
        assert cloud.how()[-1] == COLD
        # ready at 671; its gap of 9.5 s is now the head: loaded 0.9 x 9 s later, not also 54 s after the call before
        assert [at for at in cloud.starts() if at > 11 * 60.5] == pytest.approx([670.0, 679.1])
