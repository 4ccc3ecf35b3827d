"""LRU, fixed windows, FaasCache and CIDRE: their rules on cases worked out by hand."""

from __future__ import annotations

from math import exp, inf

import pytest
from policy_cloud import Cloud

from nubes.functions import events as e
from nubes.functions.events import COLD, DELAYED, WARM
from nubes.functions.policies import faascache
from nubes.functions.policies.cidre import AlwaysDelayed, BasicSpeculation, Cidre, ConditionalSpeculation
from nubes.functions.policies.faascache import FaasCache
from nubes.functions.policies.fixed_window import FixedWindow, NoUnload
from nubes.functions.policies.lru import Lru
from nubes.functions.policies.sand import NoIdle
from nubes.functions.seams import FOREVER, FunctionView, InstanceView, Window
from nubes.functions.spec import Batching, FunctionSpec
from nubes.kernel.errors import UsageError

MIB = 2**20


def view(
    name: str = "f", memory: int = 100, arrivals: int = 0, cold_s: float = 0.0, exec_s: float = 0.0
) -> FunctionView:
    f = FunctionView(name, FunctionSpec(name=name, memory_bytes=memory * MIB))
    f.arrivals, f.cold_start_s, f.exec_s = arrivals, cold_s, exec_s
    return f


def instance(f: FunctionView, id: int = 1, uses: int = 1, ready_s: float = 0.0) -> InstanceView:
    i = InstanceView(id, f, 0.0)
    i.uses, i.ready_s = uses, ready_s
    return i


def spec(name: str, memory: int = 100) -> FunctionSpec:
    return FunctionSpec(name=name, memory_bytes=memory * MIB, cpu=0.0)


class TestWindows:
    def test_fixed_window_ends_an_instance_that_long_after_its_last_call(self) -> None:
        cloud = Cloud([spec("f")], keep_alive="fixed-window(keep=10s)", exec_s=1.0, cold_s=2.0)
        cloud.call("f", 0.0, 5.0, 30.0)
        cloud.run()
        # ready at 2, runs 2..3, 5..6; idle from 6, so stopped at 16; starts again at 30
        assert [at for at, _ in cloud.stops()] == [16.0, 43.0]
        assert cloud.starts() == [0.0, 30.0]
        assert cloud.how() == [COLD, WARM, COLD]

    def test_no_unload_keeps_for_good(self) -> None:
        cloud = Cloud([spec("f")], keep_alive="no-unload")
        cloud.call("f", 0.0, 1e6)
        cloud.run()
        assert cloud.starts() == [0.0]
        assert NoUnload().window(view(), 0.0) == FOREVER

    def test_sand_keeps_nothing(self) -> None:
        cloud = Cloud([spec("f")], keep_alive="sand", exec_s=1.0, cold_s=2.0)
        cloud.call("f", 0.0, 10.0)
        cloud.run()
        assert [at for at, _ in cloud.stops()] == [3.0, 13.0]
        assert NoIdle().window(view(), 0.0) == Window(0.0, 0.0)

    def test_fixed_window_refuses_what_is_no_duration(self) -> None:
        with pytest.raises(UsageError):
            FixedWindow(keep="soon")


class TestLru:
    def test_the_longest_unused_goes_when_memory_is_short(self) -> None:
        cloud = Cloud([spec("a"), spec("b"), spec("c")], keep_alive="lru", memory_bytes=200 * MIB)
        cloud.call("a", 0.0, 20.0)
        cloud.call("b", 10.0)
        cloud.call("c", 30.0)
        cloud.run()
        assert cloud.stops() == [(30.0, 2)]  # b's

    def test_priority_is_the_time_of_the_last_use(self) -> None:
        i = instance(view())
        i.last_used_s = 7.0
        assert Lru().priority(i, 9.0) == 7.0


class TestFaasCache:
    def test_priority_is_clock_plus_freq_times_cost_over_size(self) -> None:
        policy = FaasCache()
        i = instance(view(memory=50, arrivals=10, cold_s=2.0))
        policy.dispatched(i, WARM, 0.0, 1.0)
        assert policy.priority(i, 1.0) == 10 * 2.0 / 50
        assert policy.scores("priority", i, 1.0) == [("clock", 0.0), ("value", 0.4)]

    def test_the_clock_is_the_last_victims_priority_and_never_falls(self) -> None:
        policy = FaasCache()
        f = view(memory=50, arrivals=10, cold_s=2.0)
        f.idle = 3
        policy.evicted(instance(f, 1), 0.4)
        assert policy.clock == 0.4
        policy.evicted(instance(f, 2), 0.1)
        assert policy.clock == 0.4

    def test_an_instance_keeps_the_clock_of_its_last_use(self) -> None:
        policy = FaasCache()
        f = view(memory=100, arrivals=5, cold_s=1.0)
        f.idle = 3
        used_before, used_after, unused = instance(f, 1), instance(f, 2), instance(f, 3, uses=0)
        policy.dispatched(used_before, WARM, 0.0, 1.0)
        policy.evicted(instance(f, 9), 2.0)
        policy.dispatched(used_after, WARM, 0.0, 2.0)
        assert policy.priority(used_before, 3.0) == 0.05
        assert policy.priority(used_after, 3.0) == 2.05
        assert policy.priority(unused, 3.0) == 2.05

    def test_freq_starts_anew_once_the_last_instance_was_evicted(self) -> None:
        policy = FaasCache()
        f = view(memory=100, arrivals=40, cold_s=1.0)
        f.idle = 2
        policy.evicted(instance(f, 1), 0.4)
        assert policy.value(instance(f, 2), 0.0) == 0.4
        f.idle = 1
        policy.evicted(instance(f, 2), 0.4)
        f.arrivals = 41
        assert policy.value(instance(f, 3), 0.0) == 0.01

    def test_the_rare_and_large_goes_before_the_frequent_and_small(self) -> None:
        specs = [spec("often", 100), spec("rare", 100), spec("new", 100)]
        cloud = Cloud(specs, keep_alive="faascache", memory_bytes=200 * MIB)
        cloud.call("often", 0.0, *(float(t) for t in range(5, 15)))
        cloud.call("rare", 20.0)  # used last, which would save it under LRU
        cloud.call("new", 30.0)
        cloud.run()
        rare = 2
        assert cloud.stops() == [(30.0, rare)]

    def test_every_call_without_an_idle_instance_has_one_started_and_waits_for_it(self) -> None:
        # The call of 2.5 has a start until 4.5; the instance that falls idle at 3.0 is for the call of 3.5.
        cloud = Cloud([spec("f")], keep_alive="faascache", cold_s=2.0, exec_s=1.0)
        cloud.call("f", 0.0, 2.5, 3.5, 3.6)
        cloud.run()
        assert cloud.starts() == [0.0, 2.5, 3.6]
        assert cloud.dispatched() == [2.0, 3.5, 4.5, 5.6]
        assert cloud.how() == [COLD, WARM, COLD, COLD]

    def test_a_call_without_room_for_a_start_takes_what_comes_free(self) -> None:
        cloud = Cloud([spec("f", 100)], keep_alive="faascache", cold_s=2.0, exec_s=1.0, memory_bytes=100 * MIB)
        cloud.call("f", 0.0, 2.5)
        cloud.run()
        assert cloud.starts() == [0.0]
        assert cloud.dispatched() == [2.0, 3.0]
        assert cloud.how() == [COLD, DELAYED]

    def test_a_start_is_for_as_many_calls_as_an_instance_holds(self) -> None:
        f = FunctionSpec(name="f", concurrency=2, cpu=0.0)
        cloud = Cloud([f], keep_alive="faascache", cold_s=2.0, exec_s=1.0)
        cloud.call("f", 0.0, 0.5, 1.0)
        cloud.run()
        assert cloud.starts() == [0.0, 1.0]  # two calls fit the first start, the third needs one of its own
        assert cloud.dispatched() == [2.0, 2.0, 3.0]

    def test_a_call_that_joins_a_start_under_way_has_not_taken_it_from_others(self) -> None:
        # The call of 0.5 is later than the start it shares, and still one of those that the start is for.
        f = FunctionSpec(name="f", concurrency=2, cpu=0.0)
        cloud = Cloud([f], keep_alive="faascache", cold_s={"f": 2.0}, exec_s=10.0)
        cloud.call("f", 0.0, 0.5, 2.5, 2.6, 2.7)
        cloud.run()
        assert cloud.starts() == [0.0, 2.5, 2.7]

    def test_calls_that_wait_for_their_start_leave_a_free_instance_to_others(self) -> None:
        # Both of 2.5 wait for their start although an instance is free from 3.0 on: that one takes those of 3.2.
        f = FunctionSpec(name="f", concurrency=2, cpu=0.0)
        cloud = Cloud([f], keep_alive="faascache", cold_s=2.0, exec_s=1.0)
        cloud.call("f", 0.0, 0.0, 2.5, 2.5, 3.2, 3.2)
        cloud.run()
        assert cloud.starts() == [0.0, 2.5]
        assert cloud.how() == [COLD, DELAYED, WARM, WARM, COLD, DELAYED]

    def test_freq_counts_each_call_of_a_batch(self) -> None:
        f = FunctionSpec(name="f", batching=Batching(3, 0.0), cpu=0.0)
        cloud = Cloud([f], keep_alive="faascache", cold_s=2.0, exec_s=1.0)
        cloud.call("f", 0.0, 2.2, 2.3, 2.4, 3.2)
        cloud.run()
        assert cloud.starts() == [0.0, 2.2]
        policy = cloud.controller.keep_alives[""]
        assert cloud.controller.functions["f"].arrivals == 5
        assert policy.value(cloud.controller.instances[1], 9.0) == 5 * 2.0 / 128

    def test_freq_starts_anew_when_the_app_is_deployed_anew(self) -> None:
        cloud = Cloud([spec("a/big", 100), spec("b/other", 100)], keep_alive="faascache", memory_bytes=100 * MIB)
        cloud.call("a/big", 0.0, 5.0)
        cloud.call("b/other", 10.0)  # evicts the only instance of big, whose two calls then count no longer
        cloud.run()
        cloud._handle(e.Removed("a"))
        cloud._handle(e.Deployed("a", 2, (spec("a/big", 100),)))
        cloud.call("a/big", 20.0)
        cloud.run()
        (kept,) = cloud.controller.functions["a/big"].instances.values()
        assert cloud.controller.keep_alives[""].value(kept, 30.0) == 1 * 1.0 / 100

    def test_clocks_stay_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(faascache, "CLOCKS", 10)
        policy = FaasCache()
        f = view()
        f.idle = 9
        for id in range(1, 101):
            policy.dispatched(instance(f, id), WARM, 0.0, 0.0)
            policy.evicted(instance(f, -1), float(id))
        assert len(policy.clocks) <= 10
        assert policy.clocks[100] == 99.0  # the latest are the ones that stay


class TestCidre:
    def test_bss_covers_a_waiting_call_by_a_start_that_lost_its_race(self) -> None:
        cloud = Cloud([spec("f")], keep_alive="cidre-bss", cold_s=2.0, exec_s=1.0)
        cloud.call("f", 0.0, 2.5, 3.5)
        cloud.run()
        assert cloud.starts() == [0.0, 2.5]
        assert cloud.how() == [COLD, DELAYED, DELAYED]

    def test_the_first_free_takes_the_head_of_the_queue(self) -> None:
        cloud = Cloud([spec("f")], keep_alive="cidre-bss", cold_s=1.0, exec_s=10.0)
        cloud.call("f", 0.0, 2.0)
        cloud.run()
        assert cloud.dispatched() == [1.0, 3.0]  # the new instance is ready at 3, the busy one would be at 11

    def test_always_delayed_waits_for_the_one_there_is(self) -> None:
        cloud = Cloud([spec("f")], keep_alive="always-delayed", cold_s=1.0, exec_s=10.0)
        cloud.call("f", 0.0, 2.0, 3.0)
        cloud.run()
        assert cloud.starts() == [0.0]
        assert cloud.dispatched() == [1.0, 11.0, 21.0]
        f = view()
        assert AlwaysDelayed().start(f, 0.0) == 1

    def test_css_stops_speculating_when_a_new_instance_stood_idle_longer_than_a_call_runs(self) -> None:
        policy = ConditionalSpeculation()
        f = view(exec_s=1.0, cold_s=5.0)
        f.busy, f.queued = 1, 1
        assert policy.start(f, 0.0) == 1
        policy.dispatched(instance(f, uses=1, ready_s=10.0), WARM, 0.0, 11.0)  # Ti == Te: still worth it
        assert policy.start(f, 11.0) == 1
        policy.dispatched(instance(f, uses=2, ready_s=10.0), WARM, 0.0, 20.0)  # no first use
        assert policy.start(f, 20.0) == 1
        policy.dispatched(instance(f, uses=1, ready_s=10.0), WARM, 0.0, 11.5)  # Ti > Te
        assert policy.start(f, 11.5) == 0

    def test_css_speculates_again_when_a_call_waited_longer_than_a_start_takes(self) -> None:
        policy = ConditionalSpeculation()
        f = view(exec_s=1.0, cold_s=5.0)
        f.busy, f.queued = 1, 1
        policy.speculate["f"] = False
        policy.dispatched(instance(f, uses=4), DELAYED, 5.0, 20.0)  # Td == Tp
        assert policy.start(f, 20.0) == 0
        policy.dispatched(instance(f, uses=5), DELAYED, 5.5, 30.0)
        assert policy.start(f, 30.0) == 1

    def test_css_always_starts_what_has_no_instance(self) -> None:
        policy = ConditionalSpeculation()
        policy.speculate["f"] = False
        f = view(exec_s=1.0, cold_s=5.0)
        f.queued = 1
        assert policy.start(f, 0.0) == 1

    def test_css_never_starts_more_than_wait_uncovered(self) -> None:
        f = view()
        f.queued, f.starting, f.busy = 5, 3, 1
        assert ConditionalSpeculation().start(f, 0.0) == 2
        f.starting = 7
        assert BasicSpeculation().start(f, 0.0) == 0

    def test_css_learns_in_a_run(self) -> None:
        # A start of 5 s loses against a call of 1 s; its instance first runs 89.5 s later: from then on calls wait.
        cloud = Cloud([spec("f")], keep_alive="cidre-css", cold_s=5.0, exec_s=1.0)
        cloud.call("f", 0.0, 5.5, 100.0, 100.1, 100.2)
        cloud.run()
        assert cloud.starts() == [0.0, 5.5]
        assert cloud.how() == [COLD, DELAYED, WARM, WARM, DELAYED]

    def test_foresight_starts_where_waiting_would_take_longer(self) -> None:
        f = view(exec_s=60.0, cold_s=0.2)
        f.busy, f.queued = 1, 3
        blind, seeing = ConditionalSpeculation(), ConditionalSpeculation(foresee=True)
        blind.speculate["f"] = seeing.speculate["f"] = False
        assert blind.start(f, 0.0) == 0
        assert seeing.start(f, 0.0) == 3  # the last would wait for 180 s
        assert seeing.scores("start", f, 0.0) == [("new instance", 0.2), ("busy instance", 180.0)]
        f.exec_s, f.cold_start_s = 0.01, 1.0
        assert seeing.start(f, 0.0) == 0

    def test_cip_divides_by_the_number_of_cached_instances(self) -> None:
        policy = Cidre(recent="10m")
        f = view(memory=50, cold_s=2.0)
        for now in (0.0, 600.0):
            policy.arrived(f, now)
        f.busy, f.idle = 1, 3
        freq = 1.0 + exp(-1.0)
        assert policy.value(instance(f), 600.0) == pytest.approx(freq * 2.0 / (50 * 4))
        assert policy.value(instance(f), 1200.0) == pytest.approx(freq * exp(-1.0) * 2.0 / (50 * 4))
        f.busy, f.idle = 0, 1
        assert policy.value(instance(f), 600.0) == pytest.approx(freq * 2.0 / 50)

    def test_cip_can_value_a_function_whose_calls_it_never_saw(self) -> None:
        f = view(cold_s=1.0)
        assert Cidre().value(instance(f), 5.0) == 0.0
        f.last_arrival_s = 5.0
        assert Cidre().value(instance(f), 5.0) == 0.01
        assert f.last_arrival_s < inf

    @pytest.mark.parametrize(("policy", "of_wide"), [("cidre", 2), ("faascache", 4)])
    def test_cip_takes_from_the_wide_what_faascache_takes_from_the_narrow(self, policy: str, of_wide: int) -> None:
        # wide has 4 instances and 8 calls, each narrow one instance and 3 calls; two more instances need room.
        # FaasCache: 3 is below 8, so two narrow ones lose all. CIP: 8/4, then 8/3 is below 3: wide gives up two.
        names = ["wide", "n1", "n2", "n3", "n4", "new1", "new2"]
        cloud = Cloud([spec(name) for name in names], keep_alive=policy, memory_bytes=800 * MIB, exec_s=2.0)
        cloud.call("wide", *([0.0] * 4), *([10.0] * 4))
        for name in ("n1", "n2", "n3", "n4"):
            cloud.call(name, 11.0, 15.0, 19.0)
        cloud.call("new1", 30.0)
        cloud.call("new2", 31.0)
        cloud.run()
        left = sum(i.function.name == "wide" for i in cloud.controller.instances.values())
        assert left == of_wide
