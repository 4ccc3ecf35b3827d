"""The driver in virtual time, on cases worked out by hand and against an independent model."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nubes.drivers.sim import simulate
from nubes.drivers.sim.driver import deployments
from nubes.functions import events as e
from nubes.functions.controller import Functions
from nubes.functions.events import COLD, DELAYED, WARM
from nubes.functions.models import FORK_S, INTERPRETER_S, TreeTimes
from nubes.functions.spec import Batching, Code, Retries
from nubes.replay.measures import DOLLARS_PER_CALL, DOLLARS_PER_GIB_S, measures
from nubes.workloads.outcome import ANSWERED, FAILED, UNANSWERED

from .small import GIB, random_workload, run, workload


def test_cold_starts_waits_and_memory_time_by_hand() -> None:
    """Starts take 2 s, calls 1 s, the window is 5 s.

    Call 0 waits until 2 and ends at 3; call 1 comes at 0.5, gets an instance of its own at 2.5 and ends at 3.5. Both
    instances go 5 s later, so call 2 at 10 starts a third one, which is idle from 13 to 18.
    """
    made = workload([(0.0, 1.0), (0.5, 1.0), (10.0, 1.0)])
    outcome = run(made)
    assert outcome.started_s.tolist() == [2.0, 2.5, 12.0]
    assert outcome.ended_s.tolist() == [3.0, 3.5, 13.0]
    assert outcome.how.tolist() == [COLD, COLD, COLD]
    assert outcome.lives.start_s.tolist() == [0.0, 0.5, 10.0]
    assert outcome.lives.stop_s.tolist() == [8.0, 8.5, 18.0]
    m = measures(made, outcome)
    assert (m.calls, m.failed, m.unanswered, m.starts, m.peak_instances) == (3, 0, 0, 3, 2)
    assert m.cold_share == 1.0
    assert m.loaded_gib_s == 24.0
    assert m.wasted_gib_s == 21.0
    assert m.idle_minutes == pytest.approx(15 / 60)
    assert m.peak_bytes == 2 * GIB
    assert m.dollars == pytest.approx(24 * DOLLARS_PER_GIB_S + 3 * DOLLARS_PER_CALL)
    assert (m.mean_wait_s, m.mean_latency_s, m.wait_s.p50, m.latency_s.p50) == (2.0, 3.0, 2.0, 3.0)
    assert m.slowdown.p50 == 3.0


def test_a_call_is_warm_within_the_window_and_delayed_behind_a_busy_instance() -> None:
    """Call 1 finds the instance idle. Call 2 finds it busy until 12, before another could be ready at 21.5."""
    made = workload([(0.0, 1.0), (11.0, 1.0), (11.5, 1.0)], start_s=[10.0], seconds=30.0)
    outcome = run(made)
    assert outcome.how.tolist() == [COLD, WARM, DELAYED]
    assert outcome.started_s.tolist() == [10.0, 11.0, 12.0]
    m = measures(made, outcome)
    assert m.cold_share == pytest.approx(1 / 3)
    assert m.delayed_share == pytest.approx(1 / 3)


def test_start_times_are_handed_out_in_turn() -> None:
    outcome = run(workload([(0.0, 1.0), (30.0, 1.0), (60.0, 1.0)], start_s=[1.0, 4.0], seconds=90.0))
    assert outcome.started_s.tolist() == [1.0, 34.0, 61.0]


def test_memory_time_ends_with_the_workload_but_calls_are_answered() -> None:
    made = workload([(0.0, 1.0), (19.0, 4.0)], seconds=20.0)
    outcome = run(made)
    assert outcome.ended_s.tolist() == [3.0, 25.0]
    m = measures(made, outcome)
    assert m.loaded_gib_s == 8.0 + 1.0
    assert m.wasted_gib_s == 7.0 + 1.0


def test_calls_side_by_side_on_one_instance_are_one_execution() -> None:
    """Two at a time: busy from 2 to 5 and from 7 to 8, loaded from 0 to 13."""
    made = workload([(0.0, 2.0), (0.0, 3.0), (7.0, 1.0)], spec={"concurrency": 2})
    outcome = run(made)
    assert outcome.started_s.tolist() == [2.0, 2.0, 7.0]
    m = measures(made, outcome)
    assert (m.starts, m.loaded_gib_s, m.wasted_gib_s) == (1, 13.0, 9.0)


def test_a_batch_takes_as_long_as_its_longest_call() -> None:
    made = workload([(0.0, 1.0), (10.0, 1.0), (10.5, 3.0)], start_s=[1.0], spec={"batching": Batching(2, 1.0)})
    outcome = run(made, "fixed-window(keep=1h)")
    assert outcome.started_s.tolist() == [1.0, 10.5, 10.5]
    assert outcome.ended_s.tolist() == [2.0, 13.5, 13.5]


def test_a_call_that_runs_too_long_fails_at_its_timeout() -> None:
    outcome = run(workload([(0.0, 100.0)], spec={"timeout_s": 5.0}))
    assert outcome.end.tolist() == [FAILED]
    assert outcome.ended_s.tolist() == [7.0]


def test_failed_attempts_are_tried_again() -> None:
    made = workload([(0.0, 1.0)], spec={"retries": Retries(2, 1.0, 4.0)}, fails=np.array([1], np.int16))
    outcome = run(made, "fixed-window(keep=10s)")
    assert (outcome.end.tolist(), outcome.started_s.tolist()) == ([ANSWERED], [7.0])
    made = workload([(0.0, 1.0)], spec={"retries": Retries(2, 1.0, 4.0)}, fails=np.array([3], np.int16))
    assert run(made).end.tolist() == [FAILED]


def test_a_copy_of_a_late_call_takes_as_long_as_the_next_one() -> None:
    made = workload([(0.0, 1.0), (5.0, 9.0), (20.0, 2.0)], seconds=40.0, spec={"min_instances": 2})
    assert run(made, hedging="tail-at-scale(delay=3s)").ended_s.tolist() == [3.0, 14.0, 22.0]
    hedged = run(made.idempotent(), hedging="tail-at-scale(delay=3s)")
    assert hedged.ended_s.tolist() == [3.0, 10.0, 22.0]  # late at 8.0; the copy takes the 2 seconds of the third
    assert hedged.started_s.tolist() == [2.0, 5.0, 20.0]


def test_overhead_keeps_the_instance_but_is_not_execution() -> None:
    outcome = run(workload([(0.0, 1.0), (0.0, 1.0)], spec={"max_instances": 1}, overhead_s=np.array([0.5, 0.5])))
    assert outcome.ended_s.tolist() == [3.5, 5.0]


def test_capacity_is_kept_to() -> None:
    made = random_workload(5, calls=200)
    m = measures(made, run(made, "lru", memory_bytes=2 * GIB, cpu=0.5))
    assert m.unanswered == 0
    assert m.peak_bytes <= 2 * GIB


def test_a_call_that_never_ends_is_left_unanswered_and_the_run_ends_all_the_same() -> None:
    outcome = run(workload([(0.0, 1e6)], spec={"timeout_s": 1e9}, seconds=5.0))
    assert outcome.end.tolist() == [UNANSWERED]


def test_a_fork_from_the_functions_own_parent_is_quick_and_one_from_a_bare_one_saves_the_interpreter() -> None:
    """SEUSS grows a bare parent, then the function's below it; the second instance is a fork of that."""
    made = workload([(10.0, 1.0), (100.0, 1.0)], seconds=200.0)
    outcome = run(made, cold_start="seuss")
    # Eager: the function's parent stands before the first call.
    assert outcome.started_s.tolist() == [10.0 + FORK_S, 100.0 + FORK_S]
    outcome = run(made, cold_start="zygote")
    assert outcome.started_s == pytest.approx([12.0 - INTERPRETER_S, 102.0 - INTERPRETER_S])


def test_shared_imports_save_their_part() -> None:
    made = workload([(10.0, 1.0)], spec={"code": Code(imports=("a", "b", "c"))})
    outcome = run(made, cold_start="sock")
    wait = outcome.started_s[0] - 10.0
    assert FORK_S <= wait < 2.0 - INTERPRETER_S


def test_measured_times_of_forks_are_used() -> None:
    tree = TreeTimes(own_s=((0.25,),), grown={("", (), ""): ((1.0, 100),), ("", (), "app/f"): ((2.0, GIB),)})
    made = workload([(1.0, 1.0), (10.0, 1.0)], seconds=20.0, tree=tree)
    outcome = run(made, cold_start="seuss")
    assert outcome.started_s.tolist() == [3.25, 10.25]  # the parents are ready at 1 and 3
    parents = outcome.lives.function == -1
    assert outcome.lives.ready_s[parents].tolist() == [1.0, 3.0]
    loaded = 20.0 * 100 / GIB + 20.0 + (10.25 + 1 + 5 - 10.0) + (3.25 + 1 + 5 - 3.0)
    assert measures(made, outcome).loaded_gib_s == pytest.approx(loaded)


def test_controls_come_in_their_order_and_a_restart_ends_everything() -> None:
    made = workload([(0.0, 1.0), (9.5, 10.0), (12.0, 1.0)], seconds=30.0)
    controls = [*deployments(made), (10.0, e.Restarted())]
    outcome = simulate(made, Functions("fixed-window(keep=1m)", cold_start="fresh"), controls=controls)
    assert outcome.end.tolist() == [ANSWERED, UNANSWERED, ANSWERED]
    assert outcome.lives.stop_s[0] == 10.0
    assert outcome.how.tolist()[2] == COLD


def test_starts_and_latencies_equal_those_of_an_independent_model() -> None:
    pytest.importorskip("simpy")
    path = Path(__file__).parents[2] / "bench" / "simpy_model.py"
    spec = importlib.util.spec_from_file_location("simpy_model", path)
    assert spec is not None
    assert spec.loader is not None
    model = importlib.util.module_from_spec(spec)
    sys.modules["simpy_model"] = model
    spec.loader.exec_module(model)
    for seed in range(40):
        made = random_workload(seed)
        outcome = run(made, "fixed-window(keep=4s)")
        other = model.Model(made, 4.0)
        other.run()
        assert sum(other.starts) == (outcome.lives.function >= 0).sum(), seed
        assert np.sort(other.latencies_s) == pytest.approx(np.sort(outcome.ended_s - made.arrival_s)), seed


DIGEST = """
import hashlib
from nubes.drivers.sim import simulate
from nubes.functions.controller import Functions
from nubes.workloads import load
made = load("azure-like(functions=20,length=20m)", 3)
digest = hashlib.sha256()
for keep_alive in ("hybrid-histogram", "cidre"):
    outcome = simulate(made, Functions(keep_alive, cold_start="sock", memory_bytes=2**31), record=True)
    for column in (outcome.started_s, outcome.ended_s, outcome.how, outcome.lives.stop_s):
        digest.update(column.tobytes())
    digest.update(repr(outcome.log).encode())
print(digest.hexdigest())
"""


def test_the_same_run_in_another_process_is_the_same_to_the_bit() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1
