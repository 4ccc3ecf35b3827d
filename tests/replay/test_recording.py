"""Recordings: a log folded back into a workload, and replays that state their own error."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from nubes.drivers.sim import simulate
from nubes.functions import events as e
from nubes.functions.controller import Functions
from nubes.functions.spec import FunctionSpec, Retries
from nubes.kernel.errors import UsageError
from nubes.replay import Configuration, ranking, replay
from nubes.replay.measures import measures
from nubes.replay.report import METRICS
from nubes.workloads import load
from nubes.workloads.recording import Recording, recording_of, write_events

from .small import GIB, random_workload, run, workload

POLICIES = [("fixed-window(keep=4s)", "fresh"), ("cidre", "seuss"), ("lru", "sock"), ("hybrid-histogram", "zygote")]


def _recorded(tmp_path: Path, keep_alive: str, cold_start: str, seed: int = 1) -> Recording:
    outcome = run(random_workload(seed), keep_alive, cold_start=cold_start, memory_bytes=4 * GIB, record=True)
    write_events(tmp_path, outcome.log)
    loaded = load(tmp_path)
    assert isinstance(loaded, Recording)
    return loaded


@pytest.mark.parametrize(("keep_alive", "cold_start"), POLICIES)
def test_what_was_recorded_comes_out_the_same_under_what_was_live(
    tmp_path: Path, keep_alive: str, cold_start: str
) -> None:
    recording = _recorded(tmp_path, keep_alive, cold_start)
    decide = {"keep-alive": keep_alive, "queueing": "fifo", "cold-start": cold_start, "placement": "balanced"}
    decide |= {"balancing": "latest", "hedging": "none", "disruption": "at-once"}
    assert recording.policies == decide
    assert recording.left_out == 0
    again = simulate(recording.workload, Functions(), controls=recording.controls)
    measured = recording.measured
    assert again.how.tolist() == measured.how.tolist()
    assert again.started_s == pytest.approx(measured.started_s)
    assert again.ended_s == pytest.approx(measured.ended_s)
    was, now = measures(recording.workload, measured), measures(recording.workload, again)
    assert (now.starts, now.peak_instances) == (was.starts, was.peak_instances)
    assert now.wasted_gib_s == pytest.approx(was.wasted_gib_s)


def test_the_gap_is_measured_with_start_times_that_are_not_each_starts_own(tmp_path: Path) -> None:
    recording = _recorded(tmp_path, "fixed-window(keep=4s)", "fresh")
    shifted = recording.out_of_sample()
    for samples, other in zip(recording.workload.start_s, shifted.start_s, strict=True):
        assert sorted(samples) == sorted(other)
        assert other.tolist() == [*samples[1:], samples[0]]
    outcome = simulate(shifted, Functions(), controls=recording.controls)
    was, now = measures(recording.workload, recording.measured), measures(shifted, outcome)
    gap = replay(recording, [Configuration()], jobs=1).gap
    assert gap is not None
    assert gap.gap["p95"] == pytest.approx(abs(now.latency_s.p95 - was.latency_s.p95) / was.latency_s.p95)
    assert gap.gap["cold_share"] == pytest.approx(abs(now.cold_share - was.cold_share))
    assert all(gap.margin[metric] >= gap.gap[metric] for metric in METRICS)


def test_a_recording_has_the_very_times_of_each_call(tmp_path: Path) -> None:
    made = random_workload(3)
    outcome = run(made, "lru", record=True)
    recording = recording_of(outcome.log, "again")
    again = recording.workload
    assert again.exec_s.tolist() == made.exec_s.tolist()
    assert again.arrival_s.tolist() == made.arrival_s.tolist()
    assert [again.specs[i].name for i in again.function] == [made.specs[i].name for i in made.function]
    assert recording.measured.ended_s == pytest.approx(outcome.ended_s)
    assert measures(again, recording.measured).starts == measures(made, outcome).starts


def test_failures_and_timeouts_fail_again() -> None:
    flaky = workload(
        [(0.0, 1.0), (5.0, 1.0), (12.0, 9.0)],
        spec={"retries": Retries(1, 1.0, 1.0), "timeout_s": 5.0},
        seconds=60.0,
        fails=np.array([1, 2, 0], np.int16),
    )
    recording = recording_of(run(flaky, record=True).log, "flaky")
    assert recording.workload.fails is not None
    assert recording.workload.fails.tolist() == [1, 2, 0]
    report = replay(recording, [Configuration()], jobs=1)
    assert report.gap is not None
    assert report.gap.replayed.failed == report.gap.measured.failed == 2


def test_overhead_beside_the_execution_is_kept() -> None:
    spec = FunctionSpec(name="a/f")
    log = [
        (100.0, e.PolicySet("cold-start", "fresh")),
        (100.0, e.Deployed("a", 1, (spec,))),
        (101.0, e.Submitted(7, "a/f")),
        (103.0, e.InstanceReady(1)),
        (104.5, e.Finished(7, 1, True, 1.0)),
        (110.0, e.Submitted(8, "a/f")),
        (110.75, e.Finished(8, 1, True, 0.5)),
        (120.0, e.Submitted(9, "a/f")),
        (121.0, e.Cancelled(9)),
    ]
    recording = recording_of(log, "live")
    made = recording.workload
    assert made.exec_s.tolist() == [1.0, 0.5]
    assert made.arrival_s.tolist() == [1.0, 10.0]
    assert made.overhead_s is not None
    assert made.overhead_s.tolist() == [0.5, 0.25]
    assert made.seconds == 21.0
    assert recording.left_out == 1
    assert recording.measured.how.tolist() == [e.COLD, e.WARM]


def test_parameters_of_a_class_and_scheduled_calls_are_calls_like_others() -> None:
    spec = FunctionSpec(name="a/C", kind="class")
    log = [
        (0.0, e.PolicySet("cold-start", "fresh")),
        (0.0, e.Deployed("a", 1, (spec,))),
        (1.0, e.Submitted(1, "a/C", variant="(x=1)")),
        (2.0, e.InstanceReady(1)),
        (3.0, e.Finished(1, 1, True, 1.0)),
        (4.0, e.Submitted(2, "a/C", variant="(x=2)")),
        (5.5, e.InstanceReady(2)),
        (6.0, e.Finished(2, 2, True, 0.5)),
    ]
    recording = recording_of(log, "classes")
    assert recording.workload.pools == ["a/C(x=1)", "a/C(x=2)"]
    report = replay(recording, [Configuration()], jobs=1)
    assert report.gap is not None
    assert report.gap.gap["cold_share"] == 0.0
    assert report.gap.replayed.starts == 2


def test_other_policies_take_the_place_of_all_that_were_live(tmp_path: Path) -> None:
    recording = _recorded(tmp_path, "fixed-window(keep=4s)", "fresh")
    kinds = [type(event) for _, event in recording.without_policies(capacity=False)]
    assert e.PolicySet not in kinds
    assert e.MachineReady not in kinds
    assert e.Deployed in kinds


def test_policies_within_the_gap_share_a_place(tmp_path: Path) -> None:
    recording = _recorded(tmp_path, "fixed-window(keep=4s)", "fresh")
    choices = [
        Configuration("fixed-window(keep=1s)"),
        Configuration("fixed-window(keep=4s)"),
        Configuration("no-unload"),
    ]
    report = replay(recording, choices, jobs=1)
    by_label = {row.label: row.measures.cold_share for row in report.rows}
    assert report.gap is not None
    narrow = msgspec.structs.replace(report.gap, margin=dict.fromkeys(METRICS, 0.0))
    wide = msgspec.structs.replace(report.gap, margin=dict.fromkeys(METRICS, 10.0))
    ordered = ranking(msgspec.structs.replace(report, gap=narrow), "cold_share")
    assert [place[0] for place in ordered] == sorted(by_label, key=lambda label: by_label[label])
    assert len(ordered) == 3
    tied = ranking(msgspec.structs.replace(report, gap=wide), "cold_share")
    assert len(tied) == 1
    assert set(tied[0]) == set(by_label)


def test_a_log_without_its_beginning_or_without_answers_is_refused(tmp_path: Path) -> None:
    write_events(tmp_path / "empty", [(0.0, e.MachineReady(1.0, GIB))])
    with pytest.raises(UsageError, match="No call"):
        load(tmp_path / "empty")
    write_events(tmp_path / "cut", [(0.0, e.MachineReady(1.0, GIB))])
    segment = next((tmp_path / "cut" / "log").glob("*.log"))
    segment.rename(segment.with_name(f"{5:016d}.log"))
    with pytest.raises(UsageError, match="starts at record 5"):
        load(tmp_path / "cut")
