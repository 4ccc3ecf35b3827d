"""The functions controller on cases worked out by hand."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime
from math import inf
from typing import Any

import pytest

from nubes.functions import answers, instances
from nubes.functions import events as e
from nubes.functions.deployments import verify
from nubes.functions.events import CANCELLED, COLD, DELAYED, FAILED, PENDING, RUNNING, SUCCEEDED, TIMED_OUT, WARM
from nubes.functions.seams import CallView, FunctionView, InstanceView, KeepAlive, Queueing, Window
from nubes.functions.spec import Batching, FunctionSpec, Retries, Schedule
from nubes.kernel.errors import NubesError
from nubes.kernel.fingerprint import fingerprint

from .desk import GIB, Desk, spec

# -- calls and instances --------------------------------------------------------------------------------------------


def test_cold_then_delayed_then_warm() -> None:
    d = Desk(spec(max_instances=1))
    first = d.call("f")
    (start,) = d.of(e.StartInstance)
    assert (start.function, start.node) == ("a/f", 0)
    d.ready(after=0.5)
    assert d.c.instances[start.instance].ready_s == 0.5
    assert d.of(e.Dispatch) == [e.Dispatch(start.instance, (first,), COLD)]
    second = d.call("f", 0.1)
    assert d.last == []
    d.done(first, 0.1)
    assert [(c.calls, c.how) for c in d.of(e.Dispatch)] == [((second,), DELAYED)]
    d.done(second, 0.1)
    third = d.call("f", 0.1)
    assert [(c.calls, c.how) for c in d.of(e.Dispatch)] == [((third,), WARM)]
    f = d.c.functions["a/f"]
    assert (f.arrivals, f.last_arrival_s, f.prewarm) == (3, d.now, 3)
    d.done(third, output=b"out")
    assert d.last == [e.Resolve(third, SUCCEEDED, "", b"out")]
    assert d.c.functions["a/f"].cold_start_s == 0.5


def test_an_unknown_function_and_a_full_queue_are_refused_at_once() -> None:
    d = Desk(spec(max_queued=2))
    calls = [d.call("f") for _ in range(3)]
    assert d.status(calls[2]) == FAILED
    assert d.reason(calls[2]).startswith("overloaded: ")
    assert d.status(d.call("g", keep=True)) == FAILED
    assert d.running() == []
    d.ready()
    assert d.running() == calls[:2]


def test_ten_times_a_tenth_of_a_cpu_is_one_cpu() -> None:
    d = Desk(spec(cpu=0.1, memory_bytes=1), cpu=1.0)
    calls = [d.call("f") for _ in range(11)]
    d.ready()
    assert d.running() == calls[:10]
    for call in calls[:10]:
        d.done(call)
    d.ready()
    d.done(calls[10])
    assert d.c.cpu_used == 0.0


def test_what_never_fits_says_so() -> None:
    d = Desk(spec("cpu", cpu=4.0), spec("memory", memory_bytes=4 * GIB), spec("fits"), cpu=2.0, memory_bytes=GIB)
    one, other, fits = d.call("cpu"), d.call("memory", keep=True), d.call("fits")
    assert [d.status(one), d.status(other)] == [FAILED, FAILED]
    assert d.reason(one) == "'a/cpu' needs 4 CPU and 128 MiB of memory, but all there is are 2 CPU and 1 GiB."
    d.ready()
    assert d.status(fits) == RUNNING


def test_what_no_longer_fits_says_so_when_its_turn_comes() -> None:
    d = Desk(spec("f", cpu=2.0), cpu=2.0)
    first, second = d.call("f"), d.call("f")
    d.ready()
    d(e.MachineReady(1.0, GIB))
    assert d.status(second) == FAILED
    d.done(first)
    assert d.status(first) == SUCCEEDED


def test_a_function_at_its_own_limit_does_not_hold_up_others() -> None:
    d = Desk(spec("limited", max_instances=1, cpu=1.0), spec("big", cpu=2.0), cpu=3.0)
    first, _, big = d.call("limited"), d.call("limited"), d.call("big")
    d.ready()
    later = d.call("big")
    assert d.status(later) == PENDING
    d.done(big)
    assert d.status(later) == RUNNING
    d.done(first)
    assert d.running() == [2, later]


def test_order_of_arrival_when_capacity_is_short() -> None:
    d = Desk(spec("f", cpu=1.0), spec("g", cpu=1.0), cpu=1.0)
    first = d.call("f", 1.0)
    d.ready()
    second = d.call("g", 1.0)
    third = d.call("f", 1.0)
    d.done(first)
    assert d.starting()
    d.ready()
    assert d.running() == [second]
    d.done(second)
    assert d.running() == [third]


def test_simultaneous_arrivals_do_not_evict_each_other_for_ever() -> None:
    d = Desk(*(spec(f"f{n}", memory_bytes=GIB) for n in range(3)), memory_bytes=GIB)
    calls = [d.call(f"f{n}") for n in range(3)]
    for _ in range(3):
        d.ready(after=1.0)
        (running,) = d.running()
        d.done(running)
    assert [d.status(call) for call in calls] == [SUCCEEDED] * 3
    assert len(d.of(e.StartInstance, d.all)) == 3


def test_memory_goes_to_whoever_waits_and_within_capacity() -> None:
    d = Desk(spec("f", memory_bytes=GIB), spec("g", memory_bytes=3 * GIB), memory_bytes=3 * GIB)
    for _ in range(3):
        d.call("f")
    d.ready()
    big = d.call("g")
    for call in (1, 2):
        d.done(call)
        assert d.within_capacity()
    d.done(3)
    d.ready()
    assert d.status(big) == RUNNING
    assert [s.reason for s in d.of(e.StopInstance, d.all)] == ["memory was needed"] * 3


def busy_beside(*, others_instance: bool) -> tuple[Desk, int, int]:
    """Memory for two instances, one of `f` runs; `g`, with an instance or without, wants one since before `f` does."""
    memory = {"memory_bytes": GIB}
    d = Desk(spec("f", **memory), spec("g", **memory), spec("h", **memory), keep_alive="lru", memory_bytes=2 * GIB)
    running = d.call("f")
    d.call("g" if others_instance else "h")
    d.ready()
    d.call("g", after=1.0)
    return d, running, d.call("f", after=1.0)


def test_memory_stays_with_a_function_whose_calls_wait_where_others_have_instances_of_their_own() -> None:
    d, running, waiting = busy_beside(others_instance=True)
    d.done(running)
    assert d.status(waiting) == RUNNING
    assert not d.of(e.StopInstance, d.all)


def test_memory_goes_to_a_function_without_any_instance_when_it_is_its_turn() -> None:
    d, running, waiting = busy_beside(others_instance=False)
    d.done(running)
    assert d.status(waiting) == PENDING
    assert d.starting()


def test_the_least_recently_used_goes_first_also_behind_one_that_is_busy() -> None:
    d = Desk(spec("f", concurrency=2, memory_bytes=GIB, cpu=0), spec("g", memory_bytes=GIB), memory_bytes=2 * GIB)
    for _ in range(4):
        d.call("f")
    d.ready()
    one, other = d.c.instances
    runs = {i: list(d.c.instances[i].calls) for i in (one, other)}
    d.done(runs[one][0])  # `one` is open and busy, `other` idle
    for call in runs[other]:
        d.done(call)
    waiting = d.call("g")
    assert [s.instance for s in d.of(e.StopInstance)] == [other]
    d.ready()
    assert d.status(waiting) == RUNNING


# -- concurrency, batching, calls handed ahead ------------------------------------------------------------------------


def test_concurrent_calls_share_an_instance_up_to_its_room() -> None:
    d = Desk(spec(concurrency=3))
    calls = [d.call("f") for _ in range(4)]
    assert len(d.of(e.StartInstance, d.all)) == 2
    d.ready()
    assert sorted(i.load for i in d.c.instances.values()) == [1, 3]
    assert d.running() == calls


def test_a_batch_is_full_or_ripe() -> None:
    d = Desk(spec(batching=Batching(3, 0.5), max_instances=1))
    first = d.call("f")
    d.ready()
    assert [t.at for t in d.of(e.SetTimer) if t.key == ("serve", "a/f")] == [0.5]
    d.timer("serve", "a/f", after=0.5)
    assert [(c.calls, c.batch) for c in d.of(e.Dispatch)] == [((first,), True)]
    batch = tuple(d.call("f", 0.1) for _ in range(3))
    d.done(first)
    assert [c.calls for c in d.of(e.Dispatch)] == [batch]


def test_a_batch_is_of_one_method() -> None:
    d = Desk(spec(kind="class", batching=Batching(9, 0.0), max_instances=1))
    methods = ["m", "m", "n", "n", "m"]
    calls = [d.call("f", method=method) for method in methods]
    taken: list[tuple[int, ...]] = []
    d.ready()
    while d.running():
        taken.append(d.of(e.Dispatch)[0].calls)
        for call in taken[-1]:
            d.done(call)
    assert taken == [(calls[0], calls[1]), (calls[2], calls[3]), (calls[4],)]


def test_only_the_call_that_runs_times_out_of_those_handed_ahead() -> None:
    d = Desk(spec(max_instances=1, timeout_s=10.0))
    first = d.call("f")
    d.ready()
    waiting = [d.call("f") for _ in range(3)]
    d.done(first, exec_s=1e-6)
    (ahead,) = d.of(e.Dispatch)
    assert ahead.calls == tuple(waiting)
    assert not ahead.batch
    (instance,) = d.c.instances
    d.timer("instance", instance, after=10.0)
    assert [d.status(call) for call in waiting] == [TIMED_OUT, PENDING, PENDING]
    d.ready()
    assert set(d.running()) <= set(waiting[1:])


def test_a_lost_instance_counts_only_against_the_call_that_ran() -> None:
    d = Desk(spec(max_instances=1))
    first = d.call("f")
    d.ready()
    waiting = [d.call("f") for _ in range(3)]
    d.done(first, exec_s=1e-6)
    (instance,) = d.c.instances
    d(e.InstanceLost(instance, "it was killed"))
    assert [d.status(call) for call in waiting] == [FAILED, PENDING, PENDING]


# -- cancelling -------------------------------------------------------------------------------------------------------


def test_a_cancelled_call_makes_way_for_the_next() -> None:
    d = Desk(spec(max_instances=1))
    first, second = d.call("f"), d.call("f")
    d.ready()
    d(e.Cancelled(first))
    assert d.status(first) == CANCELLED
    assert [s.kill for s in d.of(e.StopInstance)] == [True]
    d.ready()
    assert d.status(second) == RUNNING


def test_terminating_an_instance_gives_its_other_calls_a_new_one() -> None:
    d = Desk(spec(concurrency=2, max_instances=1))
    first, second = d.call("f"), d.call("f")
    d.ready()
    d(e.Cancelled(first, terminate=True))
    d.ready()
    assert d.status(second) == RUNNING


def test_cancelling_one_of_several_interrupts_it() -> None:
    d = Desk(spec(concurrency=2))
    first, second = d.call("f"), d.call("f")
    d.ready()
    (instance,) = d.c.instances
    d(e.Cancelled(first))
    assert d.of(e.Interrupt) == [e.Interrupt(instance, first)]
    d(e.Finished(first, instance, False, 0.1))
    d.done(second)
    assert [d.status(first), d.status(second)] == [CANCELLED, SUCCEEDED]


def test_a_waiting_call_that_is_cancelled_makes_way_for_what_it_held_up() -> None:
    d = Desk(spec("f", cpu=1.0), spec("small", cpu=1.0), spec("big", cpu=2.0), cpu=2.0)
    calls = [d.call("f"), d.call("f")]
    d.ready()
    big, small = d.call("big", 1.0), d.call("small", 1.0)
    d.done(calls[0])
    assert d.starting() == []
    d(e.Cancelled(big))
    d.ready()
    assert d.status(small) == RUNNING


def test_a_client_that_hangs_up_takes_its_calls_along_but_not_durable_ones() -> None:
    d = Desk(spec(max_instances=1))
    mine, durable, other, waits = (
        d.call("f", owner=1),
        d.call("f", owner=1, keep=True),
        d.call("f", owner=2),
        d.call("f", owner=1),
    )
    d.ready()
    d(e.ClientGone(1))
    assert [d.status(mine), d.status(waits)] == [CANCELLED, CANCELLED]
    d.ready()
    assert [d.status(durable), d.status(other)] == [RUNNING, PENDING]


def test_an_ephemeral_app_goes_with_its_client() -> None:
    d = Desk()
    d.deploy(spec(min_instances=1), ephemeral=True)
    d.ready()
    d.deploy(FunctionSpec(name="b/waits", memory_bytes=3 * GIB), app="b")
    call = d.call("f", owner=5, keep=True)
    d(e.MachineReady(8.0, 3 * GIB))
    d(e.Submitted(99, "b/waits"))
    d(e.ClientGone(5, ("a",)))
    assert [s.function for s in d.of(e.StartInstance)] == ["b/waits"]
    assert d.status(call) == CANCELLED
    assert len(d.of(e.StopInstance)) == 1
    assert d.status(d.call("f")) == FAILED


# -- idempotency keys -------------------------------------------------------------------------------------------------


def test_calls_of_one_key_run_once_and_all_are_answered() -> None:
    d = Desk(spec())
    first, second = d.call("f", key="k"), d.call("f", key="k")
    d.ready()
    d.done(first, output=b"out")
    assert d.last == [e.Resolve(first, SUCCEEDED, "", b"out"), e.Resolve(second, SUCCEEDED, "", b"out")]
    assert d.status(d.call("f", key="k")) == RUNNING  # nothing of it was kept


def test_a_durable_answer_stands_for_later_calls_of_its_key() -> None:
    d = Desk(spec())
    first = d.call("f", key="k", keep=True)
    assert d.c.keys["a/f", "k"] == first
    d.ready()
    d.done(first, output=b"out")
    assert d.status(d.call("f", key="k")) == SUCCEEDED
    assert d.last[-1].output == b"out"
    d.call("f", key="k", keep=True)
    assert d.last == []  # its caller is told the id of the first one
    assert d.c.keys["a/f", "k"] == first


def test_a_call_that_could_not_be_kept_leaves_nothing_for_later_calls_of_its_key() -> None:
    d = Desk(spec())
    first = d.call("f", key="k", keep=True)
    d(e.Cancelled(first, terminate=True, refused=True))
    assert first not in d.c.results
    second = d.call("f", key="k", keep=True)
    assert d.c.keys["a/f", "k"] == second
    assert second in d.c.calls


def following(d: Desk) -> tuple[int, int, int, int]:
    """A plain call that runs, others of its key before and after a durable one."""
    fleeting, before = d.call("f", key="k", owner=1), d.call("f", key="k", owner=2)
    durable, after = d.call("f", key="k", keep=True, input=b"own"), d.call("f", key="k", owner=2)
    assert d.c.keys["a/f", "k"] == durable
    d.ready()
    assert d.running() == [fleeting]
    return fleeting, before, durable, after


def test_a_durable_call_shares_the_work_of_a_plain_one_of_its_key() -> None:
    d = Desk(spec())
    fleeting, before, durable, after = following(d)
    d(e.Finished(fleeting, d.c.calls[fleeting].instance, True, 1.0, b"out", keep=True))
    assert {r.call for r in d.of(e.Resolve) if r.output == b"out"} == {fleeting, before, durable, after}
    assert (d.c.calls, d.c.results[durable].output, fleeting in d.c.results) == ({}, b"out", False)
    assert d.status(d.call("f", key="k")) == SUCCEEDED


def test_a_durable_call_needs_an_answer_that_the_log_is_told_of() -> None:
    d = Desk(spec())
    fleeting, before, durable, after = following(d)
    d.done(fleeting)
    assert [r.call for r in d.of(e.Resolve)] == [fleeting]
    assert [(c.calls, c.inputs) for c in d.of(e.Dispatch)] == [((durable,), (b"own",))]
    d.done(durable)
    assert {r.call for r in d.of(e.Resolve)} == {durable, before, after}


@pytest.mark.parametrize("leaves", [e.ClientGone(1), e.Cancelled(1), e.Restarted()])
def test_a_durable_call_does_not_end_with_a_plain_one_of_its_key(leaves: e.ClientGone) -> None:
    d = Desk(spec())
    fleeting, before, durable, after = following(d)
    d(leaves)
    assert fleeting not in d.c.calls
    assert d.c.calls[durable].also == (() if isinstance(leaves, e.Restarted) else (after, before))
    d.ready()
    assert d.running() == [durable]
    d.done(durable)
    assert d.status(durable) == SUCCEEDED


def test_a_durable_call_that_could_not_be_kept_leaves_its_key_to_the_plain_one() -> None:
    d = Desk(spec())
    fleeting, before, durable, after = following(d)
    d(e.Cancelled(durable, terminate=True, refused=True))
    assert (d.c.keys, d.running()) == ({("a/f", "k"): fleeting}, [fleeting])
    d.call("f", key="k")
    assert d.running() == [fleeting]
    assert d.status(after) == CANCELLED
    assert before in d.c.aliases


def test_a_plain_call_goes_on_without_a_durable_one_of_its_key() -> None:
    d = Desk(spec())
    fleeting, _, durable, after = following(d)
    d(e.Cancelled(durable))
    assert (d.status(durable), d.status(after), d.status(fleeting)) == (CANCELLED, CANCELLED, RUNNING)
    d.done(fleeting)
    assert d.status(fleeting) == SUCCEEDED
    d(e.Removed("a"))


def test_a_lost_instance_is_forgiven_to_a_plain_call_that_a_durable_one_waits_for() -> None:
    d = Desk(spec())
    fleeting, _, durable, _ = following(d)
    for _ in range(2):
        d(e.InstanceLost(d.c.calls[fleeting].instance))
        d.ready()
        assert d.running() == [fleeting]
    d(e.InstanceLost(d.c.calls[fleeting].instance, "it was killed"))
    assert d.reason(durable) == d.reason(fleeting) == "The instance that ran the call was lost: it was killed."


def test_an_app_that_is_stopped_ends_all_calls_of_a_key() -> None:
    d = Desk(spec())
    calls = following(d)
    d(e.Removed("a"))
    assert {d.status(call) for call in calls} == {CANCELLED}
    assert (d.c.calls, d.c.aliases) == ({}, {})


def test_a_restart_forgets_keys_and_others_of_calls_that_are_not_durable() -> None:
    d = Desk(spec())
    d.call("f", key="fleeting")
    durable = d.call("f", key="k", keep=True)
    d.call("f", key="k")
    d(e.Restarted())
    assert d.c.keys == {("a/f", "k"): durable}
    d.ready()
    d.done(durable)
    assert [c.call for c in d.of(e.Resolve)] == [durable]


def test_cancelling_one_of_a_key_leaves_the_work_to_the_others() -> None:
    d = Desk(spec())
    first, second, third = (d.call("f", key="k", owner=owner) for owner in (1, 2, 3))
    d.ready()
    d(e.Cancelled(second))
    assert d.status(second) == CANCELLED
    d(e.ClientGone(1))
    assert d.status(first) == RUNNING
    d.done(first)
    assert [d.status(first), d.status(third)] == [SUCCEEDED, SUCCEEDED]


def test_the_work_of_a_key_ends_with_the_last_client_that_waits_for_it() -> None:
    d = Desk(spec())
    first, second, third = d.call("f", key="k", owner=1), d.call("f", key="k", owner=2), d.call("f", key="k", owner=1)
    d.ready()
    d(e.ClientGone(1))
    assert [d.status(call) for call in (first, third)] == [RUNNING, CANCELLED]
    d(e.ClientGone(2))
    assert [d.status(call) for call in (first, second)] == [CANCELLED, CANCELLED]
    assert (d.c.calls, d.c.aliases, d.c.owners, d.c.keys) == ({}, {}, {}, {})


def test_answers_are_forgotten_when_old_or_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "RESULTS_MAX", 3)
    d = Desk(spec())
    for n in range(6):
        call = d.call("f", keep=True, key=f"k{n}")
        d.ready()
        d.done(call)
    assert list(d.c.results) == [4, 5, 6]
    d.call("f", answers.RESULTS_S + 1, keep=True, key="k9")
    d.done(7)
    assert list(d.c.results) == [7]
    assert set(d.c.keys.values()) <= {5, 6, 7}


# -- routes -----------------------------------------------------------------------------------------------------------


def test_a_route_hands_the_output_on() -> None:
    d = Desk(spec("f"), spec("g"))
    call = d.call("f", keep=True, input=b"one", route=("a/g", "a/f"), key="k")
    d.ready()
    d.done(call, output=b"two")
    d.ready()
    assert [(c.hop, c.inputs) for c in d.of(e.Dispatch)] == [(True, (b"two",))]
    d.done(call, output=b"three")
    assert [(c.hop, c.inputs, c.how) for c in d.of(e.Dispatch)] == [(True, (b"three",), WARM)]
    d.done(call, output=b"four")
    assert d.last == [e.Resolve(call, SUCCEEDED, "", b"four")]


def test_a_route_with_a_key_that_is_not_durable_ends_well() -> None:
    d = Desk(spec("f"), spec("g"))
    call = d.call("f", route=("a/g",), key="k")
    for _ in range(2):
        d.ready()
        d.done(call)
    assert d.status(call) == SUCCEEDED
    assert d.c.keys == {}


def test_a_route_back_to_the_same_function() -> None:
    d = Desk(spec(concurrency=2, max_instances=1))
    call, other = d.call("f", route=("a/f",)), d.call("f")
    d.ready()
    d.done(other)
    d.done(call)
    assert d.status(call) == RUNNING
    d.done(call)
    assert d.status(call) == SUCCEEDED


def test_every_step_of_a_route_has_its_own_tries_method_and_time() -> None:
    retries = Retries(1, 1.0, 0.0)
    d = Desk(spec("f", kind="class", retries=retries), spec("g", retries=retries, min_instances=1))
    d.ready()
    call = d.call("f", method="m", route=("a/g",))
    d.ready(after=1.0)
    d.done(call, ok=False)
    d.timer("retry", call)
    d.done(call, 5.0)
    assert [(c.method, c.how) for c in d.of(e.Dispatch)] == [("", WARM)]
    d.done(call, ok=False)
    d.timer("retry", call)
    assert d.status(call) == RUNNING
    assert d.c.functions["a/f"].last_end_s == d.c.functions["a/g"].last_end_s == 6.0


def test_a_route_to_nowhere_fails() -> None:
    d = Desk(spec())
    call = d.call("f", route=("a/g",))
    d.ready()
    d.done(call)
    assert (d.status(call), d.reason(call)) == (FAILED, "No function 'a/g' is deployed.")


# -- failures, retries, timeouts --------------------------------------------------------------------------------------


def test_retries_wait_longer_each_time_and_end() -> None:
    d = Desk(spec(retries=Retries(2, 2.0, 1.0, 60.0)))
    call = d.call("f")
    d.ready()
    waits = []
    for _ in range(2):
        d.done(call, ok=False)
        (timer,) = [t for t in d.of(e.SetTimer) if t.key == ("retry", call)]
        waits.append(timer.at - d.now)
        d.timer(*timer.key, after=waits[-1])
    assert waits == [1.0, 2.0]
    d.done(call, ok=False, output=b"error")
    assert d.last == [e.Resolve(call, FAILED, "", b"error")]
    assert d.timer("retry", call) == []


def test_lost_instances_are_forgiven_to_durable_calls_twice() -> None:
    d = Desk(spec())
    call, fleeting = d.call("f", keep=True), d.call("f")
    d.ready()
    for lost in range(3):
        assert d.status(call) == RUNNING
        d(e.InstanceLost(d.c.calls[call].instance, "out of memory"))
        assert (d.status(call) == FAILED) == (lost == 2)
        d.ready()
    assert d.reason(call) == "The instance that ran the call was lost: out of memory."
    d(e.InstanceLost(d.c.calls[fleeting].instance, "it was killed"))
    assert d.status(fleeting) == FAILED


def test_late_news_of_what_is_gone_change_nothing() -> None:
    d = Desk(spec())
    call = d.call("f", keep=True)
    d.ready()
    old = d.c.calls[call].instance
    d(e.InstanceLost(old))
    for event in (
        e.Finished(call, old, True, 0.1),
        e.InstanceLost(old),
        e.InstanceReady(old),
        e.TimerFired(("instance", old)),
    ):
        assert d(event) == []
    assert d.status(call) == PENDING


def test_a_call_times_out_and_its_instance_goes() -> None:
    d = Desk(spec(timeout_s=5.0, concurrency=2, max_instances=1))
    first = d.call("f")
    d.ready()
    second = d.call("f", 3.0)
    (instance,) = d.c.instances
    assert d.timer("instance", instance) == []  # early
    d.timer("instance", instance, after=2.0)
    assert [d.status(first), d.status(second)] == [TIMED_OUT, PENDING]
    assert [s.kill for s in d.of(e.StopInstance)] == [True]
    d.ready()
    assert d.status(second) == RUNNING


def test_a_start_that_takes_too_long_is_given_up() -> None:
    d = Desk(spec(startup_timeout_s=5.0))
    call = d.call("f")
    for _ in range(3):
        (instance,) = d.c.instances
        d.timer("instance", instance, after=5.0)
    assert (d.status(call), d.c.instances) == (FAILED, {})
    assert d.reason(call) == "No instance of 'a/f' would start: it was not ready within 5 s."


def test_what_a_start_raised_is_told_at_once() -> None:
    d = Desk(spec(min_instances=1))
    call = d.call("f")
    (instance,) = d.starting()
    d(e.InstanceLost(instance, "it failed to start", b"SyntaxError"))
    assert d.of(e.Resolve) == [e.Resolve(call, FAILED, "", b"SyntaxError")]


def test_instances_kept_ahead_come_back_once_a_start_succeeds() -> None:
    d = Desk(spec(min_instances=2))
    for _ in range(instances.START_FAILURES + 1):
        for instance in d.starting():
            d(e.InstanceLost(instance, "no such file"))
    assert d.c.instances == {}
    call = d.call("f")
    d.ready()
    assert d.status(call) == RUNNING
    assert len(d.c.instances) == 2


# -- keep-alive -------------------------------------------------------------------------------------------------------


def test_an_idle_instance_goes_when_its_window_ends() -> None:
    d = Desk(spec(keep_alive="fixed-window(keep=10s)"))
    call = d.call("f")
    d.ready()
    d.done(call, 1.0)
    (instance,) = d.c.instances
    assert d.of(e.SetTimer) == [e.SetTimer(11.0, ("instance", instance))]
    second = d.call("f", 5.0)
    d.done(second, 1.0)
    assert d.timer("instance", instance, after=4.0) == [e.SetTimer(17.0, ("instance", instance))]  # it was used since
    d.timer("instance", instance, after=6.0)
    assert d.of(e.StopInstance) == [e.StopInstance(instance, "its keep-alive ran out")]


class Forecast(KeepAlive):
    """Unloads after every call, and expects the next one 30 s later."""

    def window(self, f: FunctionView, now: float) -> Window:
        return Window(30.0, 5.0)


def test_an_instance_is_unloaded_and_is_back_before_the_next_call() -> None:
    d = Desk(spec(), keep_alive=Forecast())
    call = d.call("f")
    d.ready()
    d.done(call)
    (timer,) = d.of(e.SetTimer)
    assert (timer.at, timer.key[1], len(d.of(e.StopInstance)), d.c.instances) == (30.0, "a/f", 1, {})
    d.timer(*timer.key, after=30.0)
    assert len(d.of(e.StartInstance)) == 1
    d.ready()
    assert [t.at for t in d.of(e.SetTimer)] == [35.0]  # and goes when it was not needed
    assert d.timer(*timer.key) == []
    call = d.call("f", 1.0)
    d.done(call)
    (second,) = [t for t in d.of(e.SetTimer) if t.key[0].startswith("prewarm")]
    call = d.call("f", 1.0)  # one comes sooner: the timer is out of date
    d(e.InstanceLost(d.starting()[0], "it was killed"))
    d(e.Cancelled(call))
    assert d.timer(*second.key, after=29.0) == []


def test_what_was_asked_for_ahead_is_not_unloaded() -> None:
    d = Desk(spec(min_instances=1), keep_alive=Forecast())
    d.ready()
    call = d.call("f")
    d.done(call)
    (instance,) = d.c.instances
    assert d.of(e.StopInstance) == []
    assert d.timer("instance", instance) == []
    assert d.status(d.call("f", 1000.0)) == RUNNING


class Cheapest(KeepAlive):
    """Gives up instances of the function whose name comes first, and remembers them."""

    def __init__(self) -> None:
        self.gone: list[tuple[int, float]] = []

    def priority(self, instance: InstanceView, now: float) -> float:
        return float(ord(instance.function.name[-1]))

    def evicted(self, instance: InstanceView, priority: float) -> None:
        self.gone.append((instance.id, priority))


def test_the_policy_says_which_instance_goes_and_is_told() -> None:
    policy = Cheapest()
    d = Desk(
        *(spec(name, memory_bytes=GIB) for name in "cab"),
        spec("x", memory_bytes=2 * GIB),
        keep_alive=policy,
        memory_bytes=3 * GIB,
    )
    instances = {}
    for name in "cab":
        call = d.call(name, 1.0)
        d.ready()
        instances[name] = d.c.calls[call].instance
        d.done(call)
    d.call("x")
    assert [s.instance for s in d.of(e.StopInstance)] == [instances["a"], instances["b"]]
    assert policy.gone == [(instances["a"], 97.0), (instances["b"], 98.0)]


def test_a_pre_warmed_instance_takes_no_memory_from_those_asked_for() -> None:
    d = Desk(spec("f", memory_bytes=GIB), spec("ahead", memory_bytes=GIB, min_instances=1), memory_bytes=2 * GIB)
    d(e.PolicySet("keep-alive", "no-unload"))
    d.c.functions["a/f"].keep_alive = Forecast()
    d.done((d.call("f"), d.ready())[0])
    (timer,) = [t for t in d.of(e.SetTimer) if t.key[0].startswith("prewarm")]
    d(e.MachineReady(8.0, GIB))
    d.timer(*timer.key, after=30.0)
    assert d.of(e.StopInstance) == []
    assert d.starting() == []


def test_timers_are_set_anew_when_they_come_too_early() -> None:
    d = Desk(spec(timeout_s=100.0, startup_timeout_s=50.0))
    call = d.call("f")
    d.ready()
    (instance,) = d.c.instances
    d.timer("instance", instance, after=50.0)  # that of its start
    assert d.of(e.SetTimer) == [e.SetTimer(100.0, ("instance", instance))]
    d.done(call)
    d.timer("instance", instance, after=50.0)
    call = d.call("f", 900.0)
    assert d.of(e.SetTimer) == [e.SetTimer(1100.0, ("instance", instance))]
    d.timer("instance", instance, after=100.0)
    assert d.status(call) == TIMED_OUT


def test_a_call_that_times_out_is_tried_again_as_often_as_allowed() -> None:
    d = Desk(spec(timeout_s=5.0, retries=Retries(1, 1.0, 2.0)))
    call = d.call("f")
    d.ready()
    d.timer("instance", d.c.calls[call].instance, after=5.0)
    assert [t.at for t in d.of(e.SetTimer) if t.key == ("retry", call)] == [7.0]
    d.timer("retry", call, after=2.0)
    d.ready()
    d.timer("instance", d.c.calls[call].instance, after=5.0)
    assert d.status(call) == TIMED_OUT


def test_what_nobody_needs_goes_to_those_that_asked_for_instances() -> None:
    d = Desk(spec("f", memory_bytes=GIB), memory_bytes=3 * GIB)
    call = d.call("f")
    d.ready()
    d.deploy(FunctionSpec(name="b/g", memory_bytes=GIB, min_instances=3), app="b")
    g = d.c.functions["b/g"]
    assert (len(g.instances), g.short) == (2, True)
    d.ready()
    d.done(call)
    assert (len(g.instances), g.short) == (3, False)


def test_min_instances_stay_and_are_replaced() -> None:
    d = Desk(spec(min_instances=2, keep_alive="fixed-window(keep=10s)"))
    d.ready()
    for instance in list(d.c.instances):
        assert d.timer("instance", instance, after=10.0) == []
    d(e.InstanceLost(next(iter(d.c.instances)), "it was killed"))
    assert len(d.of(e.StartInstance)) == 1


def test_a_buffer_is_there_while_the_function_is_busy() -> None:
    d = Desk(spec(buffer_instances=2, keep_alive="fixed-window(keep=10s)"))
    call = d.call("f")
    d.ready()
    assert len(d.c.instances) == 3
    d.ready()
    f = d.c.functions["a/f"]
    spare = [i.id for i in f.instances.values() if not i.load]
    d.timer("instance", spare[0], after=10.0)
    assert len(f.instances) == 3
    d.done(call)
    for instance in list(f.instances):
        d.timer("instance", instance, after=60.0)
    assert len(f.instances) == 0


def test_instances_kept_ahead_give_way_to_calls_and_come_back() -> None:
    d = Desk(spec("ahead", min_instances=1, memory_bytes=GIB), spec("f", memory_bytes=GIB), memory_bytes=GIB)
    d.ready()
    call = d.call("f")
    assert [s.reason for s in d.of(e.StopInstance)] == ["memory was needed"]
    d.ready()
    d.done(call)
    assert [s.function for s in d.of(e.StartInstance)] == ["a/ahead"]
    assert d.within_capacity()


def test_another_policy_decides_over_idle_instances_too() -> None:
    d = Desk(spec("f"), spec("g"))
    for name in "fg":
        d.done((d.call(name), d.ready())[0])
    d(e.PolicySet("keep-alive", "fixed-window(keep=10s)", "a/f"))
    (timer,) = d.of(e.SetTimer)
    assert timer.at == 10.0
    d(e.PolicySet("keep-alive", "fixed-window(keep=20s)"))
    assert [t.at for t in d.of(e.SetTimer)] == [20.0]
    d.deploy(spec("f"), spec("g"))
    assert d.c.functions["a/f"].keep_alive.window(d.c.functions["a/f"], 0.0) == Window(0.0, 10.0)


# -- deployments ------------------------------------------------------------------------------------------------------


def test_a_new_version_replaces_the_old_after_its_calls() -> None:
    d = Desk(spec(concurrency=2))
    first, second = d.call("f"), d.call("f")
    d.ready()
    (old,) = d.c.instances
    d.deploy(spec(concurrency=2, memory_bytes=GIB, cpu=2.0))
    third = d.call("f")
    assert [s.instance for s in d.of(e.StartInstance)] != [old]
    d.done(first)
    assert d.status(third) == PENDING  # the old instance has room, but not for new calls
    d.ready()
    assert d.c.calls[third].instance != old
    d.done(second)
    assert d.of(e.StopInstance) == [e.StopInstance(old, "a newer version is deployed")]


def test_a_new_version_that_needs_less_lets_others_start() -> None:
    d = Desk(spec("f", memory_bytes=GIB), memory_bytes=GIB)
    d.deploy(FunctionSpec(name="b/g", memory_bytes=GIB // 2), app="b")
    d.call("f")
    d.ready()
    d(e.Submitted(99, "b/g"))
    assert d.starting() == []
    d.deploy(spec("f", memory_bytes=GIB // 4))
    assert [s.function for s in d.of(e.StartInstance)] == ["b/g"]
    assert d.within_capacity()


def test_functions_that_a_new_version_lacks_are_gone() -> None:
    d = Desk(spec("f"), spec("g"))
    waiting = d.call("g", keep=True)
    d.deploy(spec("f"))
    assert (d.status(waiting), d.reason(waiting)) == (CANCELLED, "'a/g' was stopped.")
    d(e.Removed("a"))
    assert d.c.functions == {}
    assert d.c.specs == {}


def test_parents_of_a_class_are_replaced_with_it() -> None:
    d = Desk(spec(kind="class"), cold_start="seuss")
    d.call("f", variant="(1)")
    root, captured = d.of(e.GrowNode)
    d(e.NodeReady(root.node, 0.1))
    d(e.NodeReady(captured.node, 0.1))
    d.deploy(spec(kind="class"))
    assert captured.node in [p.node for p in d.of(e.PruneNode)]
    assert captured.node not in d.c.tree.where


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"keep_alive": "fixed-windows"}, "Did you mean .*fixed-window"),
        ({"schedule": Schedule(cron="hourly")}, "is not a cron expression"),
        ({"concurrency": 0}, "would never take a call"),
        ({"batching": Batching(0, 1.0)}, "would never take a call"),
        ({"cpu": -1.0}, "negative size"),
        ({"timeout_s": 0.0}, "no time"),
    ],
)
def test_what_cannot_be_carried_out_is_refused_before_it_is_logged(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(NubesError, match=message):
        verify(spec(**wrong))
    verify(spec(keep_alive="fixed-window(keep=5m)", schedule=Schedule(cron="0 * * * *")))


# -- parameterisations of a class -------------------------------------------------------------------------------------

DAY_S = 86_400.0


def variants(d: Desk) -> list[str]:
    return sorted(f.variant for f in d.c.functions.values() if f.variant)


def one_call(d: Desk, variant: str, after: float = 0.0) -> None:
    call = d.call("f", after, variant=variant)
    d.ready()
    d.done(call)


def test_a_parameterisation_is_forgotten_a_day_after_its_last_call() -> None:
    d = Desk(spec(kind="class"), keep_alive="fixed-window(keep=10s)")
    one_call(d, "#1")
    d.timer("instance", 1, after=10.0)
    one_call(d, "#2", after=DAY_S - 11.0)  # not yet a day
    assert variants(d) == ["#1", "#2"]
    d.timer("instance", 2, after=10.0)
    one_call(d, "#3", after=DAY_S)
    assert variants(d) == ["#3"]
    one_call(d, "#1")  # it starts over
    assert (d.c.functions["a/f#1"].arrivals, variants(d)) == (1, ["#1", "#3"])


def test_what_has_an_instance_a_call_or_a_timer_is_not_forgotten() -> None:
    d = Desk(spec(kind="class", retries=Retries(1, 1.0, 2 * DAY_S, 2 * DAY_S)))
    one_call(d, "#loaded")  # no-unload keeps its instance
    failing = d.call("f", variant="#retries")
    d.ready()
    d.done(failing, ok=False)
    d(e.InstanceLost(2))
    one_call(d, "#expected")
    d(e.InstanceLost(3))
    d.c.functions["a/f#expected"].prewarm_s = d.now + 1.5 * DAY_S
    one_call(d, "#new", after=DAY_S + 1.0)
    assert variants(d) == ["#expected", "#loaded", "#new", "#retries"]
    one_call(d, "#newer", after=DAY_S)
    assert variants(d) == ["#loaded", "#new", "#newer", "#retries"]


def test_policies_forget_what_the_cloud_forgets() -> None:
    for text in ("faascache", "timer-aware", "hybrid-histogram(unit=function)"):
        d = Desk(spec(kind="class", memory_bytes=GIB), keep_alive=text, memory_bytes=GIB)
        for n in range(50):
            one_call(d, f"#{n}", after=DAY_S + 1.0)
            for id in list(d.c.instances):
                d(e.InstanceLost(id))
        policy = d.c.keep_alives[""]
        sizes = [len(v) for k, v in vars(policy).items() if isinstance(v, dict) and k != "clocks"]
        assert sizes
        assert max(sizes) <= 2
        assert len(d.c.functions) == 1


def test_what_is_forgotten_is_the_same_after_a_snapshot() -> None:
    def quarter_day(d: Desk, n: int) -> None:
        one_call(d, f"#{n}", after=DAY_S / 4)
        d.timer("instance", n, after=10.0)

    d = Desk(spec(kind="class"), keep_alive="fixed-window(keep=10s)")
    for n in range(1, 8):
        quarter_day(d, n)
    twin = pickle.loads(pickle.dumps(d, 5))
    for n in range(8, 16):
        quarter_day(d, n)
        quarter_day(twin, n)
        assert fingerprint(twin.c) == fingerprint(d.c)
        assert len(variants(d)) in (4, 5)


# -- schedules --------------------------------------------------------------------------------------------------------


def schedule_timers(d: Desk) -> list[float]:
    return [t.at for t in d.of(e.SetTimer) if t.key[0].startswith("schedule/")]


def test_the_clock_calls_and_only_once() -> None:
    d = Desk(spec(schedule=Schedule(period_s=60.0)))
    assert schedule_timers(d) == [60.0]
    assert d.timer("schedule/1", "a/f", after=30.0) == []  # nobody set that one
    d.timer("schedule/1", "a/f", after=30.0)
    assert schedule_timers(d) == [120.0]
    assert len(d.of(e.StartInstance)) == 1
    assert d.timer("schedule/1", "a/f") == []  # twice


def test_cron_calls_when_its_minute_comes_and_what_fails_is_called_again_the_next_time() -> None:
    d = Desk()
    d.now = datetime(2026, 3, 2, 8, 59, 30, tzinfo=UTC).timestamp()  # a Monday
    d.deploy(spec(schedule=Schedule(cron="0 9 * * 1-5")))
    nine = datetime(2026, 3, 2, 9, tzinfo=UTC).timestamp()
    assert schedule_timers(d) == [nine]
    assert d.timer("schedule/1", "a/f", after=29.0) == []  # too early
    d.timer("schedule/1", "a/f", after=1.0)
    assert d.now == nine
    assert schedule_timers(d) == [nine + 86_400.0]
    (call,) = d.c.calls
    d.ready(after=0.5)
    assert d.running() == [call]
    d.done(call, ok=False, output=b"why")
    assert d.of(e.Resolve) == [e.Resolve(call, FAILED, "", b"why")]
    assert d.c.results[call].output == b"why"  # and can be asked for
    d.now = nine + 4 * 86_400.0  # Friday
    d.timer("schedule/1", "a/f")
    assert schedule_timers(d) == [nine + 7 * 86_400.0]  # then Monday
    assert len(d.running()) == 1


def test_a_new_version_has_its_own_schedule() -> None:
    d = Desk(spec(schedule=Schedule(period_s=60.0)))
    d.deploy(spec(schedule=Schedule(period_s=10.0)))
    assert schedule_timers(d) == [10.0]
    assert d.timer("schedule/1", "a/f", after=60.0) == []
    d.deploy(spec())
    assert d.timer("schedule/2", "a/f") == []
    assert d.c.due == {}


def test_a_restart_neither_skips_nor_postpones_a_schedule() -> None:
    d = Desk(spec(schedule=Schedule(period_s=60.0)))
    d(e.Restarted(), 50.0)
    assert schedule_timers(d) == [60.0]
    d(e.Restarted(), 200.0)
    assert schedule_timers(d) == [250.0]
    d.timer("schedule/1", "a/f")
    assert schedule_timers(d) == [310.0]


# -- the control plane comes back -------------------------------------------------------------------------------------


def test_a_restart_runs_durable_calls_again_and_forgets_the_others() -> None:
    d = Desk(spec(retries=Retries(1, 1.0, 1000.0, 1000.0), max_instances=4, min_instances=1))
    running, retried, waiting, fleeting = (d.call("f", keep=keep, input=b"in") for keep in (True, True, True, False))
    d.ready()
    d.done(retried, ok=False)
    d(e.Restarted())
    assert list(d.c.calls) == [running, retried, waiting]
    assert fleeting not in d.c.calls
    d.ready()
    assert d.running() == [running, retried, waiting]
    assert all(c.inputs == (b"in",) for c in d.of(e.Dispatch, d.all)[-3:])


def test_a_restart_removes_ephemeral_apps() -> None:
    d = Desk()
    d.deploy(spec(min_instances=2), ephemeral=True)
    d.ready()
    call = d.call("f", keep=True)
    d(e.Restarted())
    assert d.of(e.StopInstance) == []  # its instances died with the control plane
    assert (d.status(call), d.c.functions, d.c.apps) == (CANCELLED, {}, {})


# -- queueing ----------------------------------------------------------------------------------------------------------


class LastFirst(Queueing):
    """The newest call of all goes first."""

    ordered = True

    def order(self, f: FunctionView, call: CallView) -> tuple[float, ...]:
        return (-call.id,)


def served(d: Desk) -> list[int]:
    """The order in which all waiting calls get an instance."""
    order = []
    while d.running():
        (call,) = d.running()
        order.append(call)
        d.done(call)
        d.ready()
    return order


def test_calls_of_one_function_go_in_the_policys_order_also_after_one_was_cancelled() -> None:
    d = Desk(spec(max_instances=1), queueing=LastFirst())
    for _ in range(9):
        d.call("f")
    for gone in (2, 8, 9):
        d(e.Cancelled(gone))
    d.ready()
    assert served(d) == [7, 6, 5, 4, 3, 1]


def test_functions_that_wait_for_room_go_in_the_policys_order() -> None:
    d = Desk(*(spec(f"f{n}", cpu=1.0) for n in range(4)), cpu=1.0, queueing=LastFirst())
    for n in (0, 1, 2, 3):
        d.call(f"f{n}")
    d.ready()
    assert served(d) == [1, 4, 3, 2]


def test_calls_of_a_lost_instance_keep_their_turn() -> None:
    d = Desk(spec(max_instances=1, retries=Retries(5)))
    first = d.call("f")
    d.ready()
    others = [d.call("f") for _ in range(3)]
    d(e.InstanceLost(d.c.calls[first].instance, "it was killed"))
    d.ready()
    assert served(d) == [first, *others]


class TwoAtOnce(Queueing):
    """Two calls of a function run at once, and none before time 10."""

    limits = True

    def __init__(self) -> None:
        self.running = 0

    def admit(self, f: FunctionView, now: float) -> float:
        return inf if self.running >= 2 else max(now, 10.0)

    def allowance(self, f: FunctionView, now: float) -> int:
        return 2 - self.running

    def issued(self, f: FunctionView, now: float) -> None:
        self.running += 1

    def finished(self, f: FunctionView, ok: bool, exec_s: float, backpressure: str, now: float) -> None:
        self.running -= 1


def test_calls_wait_for_admission_and_no_instance_starts_before() -> None:
    d = Desk(spec(timeout_s=100.0), queueing=TwoAtOnce())
    calls = [d.call("f") for _ in range(4)]
    assert d.of(e.StartInstance, d.all) == []
    assert [t.at for t in d.of(e.SetTimer, d.all) if t.key == ("serve", "a/f")] == [10.0]
    d.timer("serve", "a/f", after=10.0)
    assert len(d.of(e.StartInstance)) == 2
    d.ready()
    assert d.running() == calls[:2]
    d(e.InstanceLost(d.c.calls[calls[0]].instance, "it was killed"))
    d.ready()
    assert d.running() == calls[1:3]
    d.timer("instance", d.c.calls[calls[1]].instance, after=100.0)
    d.ready()
    assert d.c.queueing.running == len(d.running()) > 0  # type: ignore[attr-defined]


# -- switching policies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", ["fifo", "sjf", "edf", "xfaas"])
@pytest.mark.parametrize("back", ["fifo", "edf"])
def test_switching_queues_loses_nothing(there: str, back: str) -> None:
    d = Desk(spec("f", max_instances=1), spec("g", max_instances=1))
    calls = [d.call(name) for name in "fgfgfg"]
    d.ready()
    for policy in (there, back):
        d(e.PolicySet("queueing", policy))
        assert [d.c.functions[f"a/{name}"].queued for name in "fg"] == [2, 2]
    while d.running():
        d.done(d.running()[0])
    assert [d.status(call) for call in calls] == [SUCCEEDED] * 6


def test_ticks_of_a_policy_end_with_it() -> None:
    d = Desk(spec(), queueing="xfaas")
    (first,) = [t for t in d.of(e.SetTimer) if t.key[0] == "tick"]
    d(e.PolicySet("queueing", "xfaas"), 1.0)
    (second,) = [t for t in d.of(e.SetTimer) if t.key[0] == "tick"]
    assert d.timer(*first.key, after=9.0) == []
    assert [t.key for t in d.timer(*second.key, after=1.0)] == [second.key]
    d(e.PolicySet("queueing", "fifo"))
    assert d.timer(*second.key) == []
