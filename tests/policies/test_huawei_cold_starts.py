"""The timer-aware keep-alive and peak shaving."""

from __future__ import annotations

from datetime import UTC, datetime
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cloud import Cloud

from nubes.functions.events import COLD, WARM
from nubes.functions.policies.huawei_cold_starts import GAPS, PeakShaving, TimerAware, rhythm
from nubes.functions.seams import FunctionView, Window
from nubes.functions.spec import FunctionSpec, Schedule

KEEP = Window(0.0, 60.0)


def timer(**more: object) -> FunctionSpec:
    return FunctionSpec(name="f", cpu=0.0, trigger="timer", **more)  # type: ignore[arg-type]


def after(policy: TimerAware, spec: FunctionSpec, *calls: float) -> Window:
    """The window right after the last of some calls that take no time."""
    f = FunctionView(spec.name, spec)
    f.cold_start_s = 2.0
    for at in calls:
        policy.arrived(f, at)
        f.last_arrival_s = at
    return policy.window(f, calls[-1])


class TestRhythm:
    def test_one_gap_is_a_timers_period(self) -> None:
        assert rhythm([300.0], timer=True) == (300.0, 300.0)
        assert rhythm([300.0], timer=False) == (0.0, inf)
        assert rhythm([], timer=True) == (0.0, inf)

    def test_a_cycle_is_followed_by_its_phase(self) -> None:
        assert rhythm([120.0, 1680.0, 120.0, 1680.0], timer=True) == (120.0, 120.0)
        assert rhythm([120.0, 1680.0, 120.0], timer=True) == (120.0, 1680.0)  # it has not come round twice

    def test_what_varies_gives_its_bounds(self) -> None:
        assert rhythm([290.0, 300.0, 310.0], timer=True) == (290.0, 310.0)

    @given(st.lists(st.floats(1, 1000), min_size=1, max_size=4), st.integers(0, 3))
    def test_any_cycle_is_found_exactly(self, cycle: list[float], phase: int) -> None:
        endless = cycle * (GAPS + 4)
        gaps = endless[phase : phase + GAPS]
        first, last = rhythm(gaps, timer=False)
        assert first == last == endless[phase + GAPS]


class TestTimerAware:
    def test_unloads_and_is_back_just_before_the_tick(self) -> None:
        got = after(TimerAware(keep="60s", slack="1s"), timer(), 0.0, 300.0)
        assert got.prewarm_s == 300 - 1.5 * 2 - 1
        assert got.prewarm_s + got.keep_s == 301

    def test_a_tick_within_the_keep_alive_does_not_unload(self) -> None:
        assert after(TimerAware(), timer(), 0.0, 50.0) == KEEP
        assert after(TimerAware(), timer(), 0.0, 60.0) == KEEP

    def test_a_start_that_takes_longer_than_the_gap_is_not_stopped(self) -> None:
        policy = TimerAware(keep="1s")
        assert after(policy, timer(), 0.0, 3.5) == Window(0.0, 4.5)

    def test_irregular_is_kept(self) -> None:
        calls = [0.0, 100.0, 700.0, 800.0, 1900.0, 2000.0, 5000.0]
        assert after(TimerAware(), timer(), *calls) == KEEP

    def test_other_triggers_have_to_show_their_rhythm(self) -> None:
        spec = FunctionSpec(name="f", trigger="http")
        assert after(TimerAware(), spec, *(300.0 * n for n in range(GAPS))) == KEEP
        assert after(TimerAware(), spec, *(300.0 * n for n in range(GAPS + 1))).prewarm_s == 296.0

    def test_schedules_are_known_beforehand(self) -> None:
        every = timer(schedule=Schedule(period_s=600.0))
        assert after(TimerAware(), every, 0.0).prewarm_s == 600 - 4
        hourly = timer(schedule=Schedule(cron="0 * * * *"))
        at = datetime(2024, 5, 1, 12, 0, tzinfo=UTC).timestamp()
        assert after(TimerAware(), hourly, at).prewarm_s == 3600 - 4

    def test_the_first_call_is_kept(self) -> None:
        assert after(TimerAware(), timer(), 0.0) == KEEP
        assert TimerAware().window(FunctionView("f", timer()), 0.0) == KEEP

    def test_scores_tell_the_tick(self) -> None:
        policy = TimerAware()
        spec = timer(schedule=Schedule(period_s=600.0))
        f = FunctionView("f", spec)
        f.last_arrival_s = 100.0
        assert policy.scores("window", f, 110.0) == [("earliest", 590.0), ("latest", 590.0), ("keep", 60.0)]

    def test_a_timer_is_cold_twice_and_then_never(self) -> None:
        cloud = Cloud([timer()], keep_alive="timer-aware", cold_s=2.0)
        cloud.call("f", *(300.0 * n for n in range(20)))
        cloud.run(20 * 300.0)
        assert cloud.how() == [COLD, COLD, *[WARM] * 18]
        fixed = Cloud([timer()], keep_alive="fixed-window(keep=60s)", cold_s=2.0)
        fixed.call("f", *(300.0 * n for n in range(20)))
        fixed.run(20 * 300.0)
        assert fixed.how() == [COLD] * 20


def queue(name: str = "q", **more: object) -> FunctionSpec:
    return FunctionSpec(name=name, cpu=0.0, **{"trigger": "queue", **more})  # type: ignore[arg-type]


class TestPeakShaving:
    def held(self, policy: PeakShaving, f: FunctionView, now: float) -> bool:
        return policy.admit(f, now) > now

    def at_peak(self, level: float = 10.0, running: int = 14) -> PeakShaving:
        policy = PeakShaving()
        policy.level, policy.running = level, running
        return policy

    def test_holds_asynchronous_starts_at_a_peak_only(self) -> None:
        f = FunctionView("q", queue())
        f.queued = 1
        assert self.held(self.at_peak(), f, 0.0)
        assert not self.held(self.at_peak(running=12), f, 0.0)
        f.idle = 1
        assert not self.held(self.at_peak(), f, 0.0)  # no start is needed
        f.idle = 0
        for spec in (queue(trigger="http"), queue(trigger="call"), queue(criticality=1)):
            assert not self.held(self.at_peak(), FunctionView("q", spec), 0.0)

    def test_nothing_is_a_peak_before_there_is_a_usual_level(self) -> None:
        policy = PeakShaving()
        policy.running = 1000
        assert not self.held(policy, FunctionView("q", queue()), 0.0)

    def test_one_call_on_an_empty_cloud_is_no_peak(self) -> None:
        policy = PeakShaving()
        policy.tick(0.0, 0.0)
        assert policy.level == 0.0
        assert not self.held(policy, FunctionView("q", queue()), 0.0)

    def test_lets_go_after_the_delay(self) -> None:
        policy = self.at_peak()
        f = FunctionView("q", queue())
        f.queued = 2
        assert policy.admit(f, 100.0) == 105.0
        assert policy.admit(f, 155.0) == 160.0
        assert policy.admit(f, 160.0) == 160.0
        f.queued = 1
        policy.issued(f, 160.0)
        assert not self.held(policy, f, 160.0)  # the second was held as long
        f.queued = 0
        policy.issued(f, 160.0)
        f.queued = 1
        assert self.held(policy, f, 161.0)  # a third was not

    def test_lets_go_only_of_those_that_waited_so_long(self) -> None:
        policy = self.at_peak()
        f = FunctionView("q", queue())
        f.queued = 2
        assert policy.admit(f, 100.0) == 105.0
        f.queued = 12  # ten more
        assert policy.admit(f, 140.0) == 145.0
        assert policy.admit(f, 160.0) == 160.0
        assert policy.allowance(f, 160.0) == 2
        for f.queued in (11, 10):
            policy.issued(f, 160.0)
        assert policy.admit(f, 160.0) == 165.0
        assert policy.admit(f, 200.0) == 200.0

    def test_the_usual_level_follows_slowly(self) -> None:
        policy = PeakShaving(usual="10m")
        policy.tick(0.0, 0.0)
        policy.running = 100
        for n in range(1, 121):  # ten minutes
            policy.tick(0.0, 5.0 * n)
        assert policy.level == pytest.approx(100 * (1 - 1 / 2.718281828), rel=1e-6)

    def test_scores_tell_load_and_peak(self) -> None:
        scores = self.at_peak().scores("admit", FunctionView("q", queue()), 0.0)
        assert scores == [("instances", 14), ("peak from", 13.0)]

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.floats(0, 200), min_size=1, max_size=60), st.lists(st.floats(0, 200), max_size=60))
    def test_no_call_waits_longer_than_the_delay_and_none_is_lost(self, held: list[float], direct: list[float]) -> None:
        specs = [queue("q"), FunctionSpec(name="d", cpu=0.0)]
        cloud = Cloud(specs, keep_alive="fixed-window(keep=60s)", queueing="peak-shaving", cold_s=1.0, exec_s=3.0)
        cloud.call("q", *sorted(held))
        cloud.call("d", *sorted(direct))
        cloud.run(400.0)
        waits = [at - when for at, when in zip(cloud.dispatched("q"), sorted(held), strict=True)]
        assert max(waits) <= 60.0 + 1.0 + 1e-9
        assert all(
            at - when <= 1.0 + 1e-9 for at, when in zip(cloud.dispatched("d"), sorted(direct), strict=True)
        )  # what does not wait is not made to
        assert cloud.controller.queueing.running == 0

    def test_a_narrow_peak_needs_fewer_instances(self) -> None:
        def most(queueing: str) -> int:
            specs = [queue("q"), FunctionSpec(name="d", cpu=0.0)]
            cloud = Cloud(specs, keep_alive="fixed-window(keep=5s)", queueing=queueing, cold_s=0.5, exec_s=2.0)
            cloud.call("d", *(0.25 * n for n in range(2400)))  # 8 at once, all the time
            cloud.call("d", *([300.0] * 20))  # and 20 more for 2 s
            cloud.call("q", *([300.0] * 20))
            cloud.run(700.0)
            return cloud.most

        assert most("peak-shaving") <= 0.9 * most("fifo")
