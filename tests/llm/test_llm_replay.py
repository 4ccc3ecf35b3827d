"""Replays of LLM requests: objectives, measures, configurations side by side, pages."""

from __future__ import annotations

import json
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest

from nubes.drivers.sim.llm import Instance, simulate_llm
from nubes.kernel.errors import UnknownPolicy, UsageError
from nubes.llm.engine.recording import read
from nubes.llm.models import step_model
from nubes.llm.models.cpu import Cpu
from nubes.llm.scheduling.load import Load
from nubes.llm.scheduling.scheduler import Scheduler
from nubes.replay.llm import Configuration, Report, Slo, configurations, ranking, replay_llm, slo
from nubes.replay.llm.measures import Meter, measures, weighted
from nubes.replay.llm.page import html
from nubes.replay.llm.terminal import table
from nubes.workloads.llm import LLMWorkload, load_llm

from .test_recording import serve

MODEL = "opt(opt-13b,tp=1)"
CHAT = "chat-like(rate=2,length=40s,limit=2048)"


@pytest.fixture(scope="module")
def report() -> Report:
    return replay_llm(
        load_llm(CHAT),
        configurations([MODEL], ["sarathi(budget=256)", "vllm"], retention=["lru", "none"]),
        slo=slo("ttft=1s,tpot=60ms"),
        jobs=1,
    )


def _without_speed(report: Report) -> Report:
    return msgspec.structs.replace(report, rows=[msgspec.structs.replace(r, requests_per_s=0.0) for r in report.rows])


def requests(prompt: list[int], output: list[int], arrival_s: list[float]) -> LLMWorkload:
    return LLMWorkload("hand", "Made by hand.", np.array(arrival_s), np.array(prompt), np.array(output), arrival_s[-1])


def test_objectives_are_read() -> None:
    assert slo("ttft=500ms, tpot=50ms") == Slo(0.5, 0.05)
    assert str(slo("tpot=50ms,latency=2m")) == "tpot 50 ms, latency 2 min"
    for wrong in ("", "ttft", "ttft=1s,ttft=2s", "p99=1s"):
        with pytest.raises(UsageError):
            slo(wrong)


def test_measures_of_two_requests_served_one_after_the_other() -> None:
    """A machine of 1 s a step: prompt, token, token; the second waits for the first."""
    model = Cpu("clock", (1.0, 0, 0, 0, 0), 0.0, 1, 64)
    workload = requests([16, 16], [3, 1], [0.0, 0.5])
    meter = Meter(workload.seconds, lambda share: None)
    served = simulate_llm(workload, [Instance(Scheduler(2, batching="vllm(max_seqs=1)"), model)], watch=meter)
    assert served.first_s.tolist() == [1.0, 4.0]
    assert served.end_s.tolist() == [3.0, 4.0]
    found = measures(served, meter, 1, 9.0, Slo(ttft_s=2.0, tpot_s=1.0))
    assert found.ttft_s.p50 == pytest.approx((1.0 + 3.5) / 2)
    assert found.gap_s.p99 == 1.0
    assert (found.attained, found.goodput) == (0.5, 1 / 4)
    assert found.output_tokens_per_s == 1.0
    assert found.dollars == pytest.approx(9.0 * 4 / 3600)
    assert found.dollars_per_million == pytest.approx(found.dollars / 36 * 1e6)
    assert (found.busy, found.kv_peak, found.unserved) == (1.0, 1.0, 0)


def test_what_is_never_served_misses_the_objective() -> None:
    workload = requests([16, 500], [2, 2], [0.0, 0.0])
    model = Cpu("clock", (1.0, 0, 0, 0, 0), 0.0, 1, 64)
    meter = Meter(1.0, lambda share: None)
    served = simulate_llm(workload, [Instance(Scheduler(4), model)], watch=meter)
    found = measures(served, meter, 1, 1.0, Slo())
    assert (found.unserved, found.attained) == (1, 0.5)


def test_percentiles_of_counted_values_are_those_of_all_of_them() -> None:
    draw = np.random.default_rng(0)
    values, counts = draw.random(200), draw.integers(1, 30, 200)
    every = np.sort(np.repeat(values, counts))
    for percentile, found in zip((50, 90, 95, 99), msgspec.structs.astuple(weighted(values, counts)), strict=True):
        assert found == every[int(np.ceil(percentile / 100 * len(every))) - 1]


def test_a_pipeline_works_on_as_many_steps_as_it_has_stages() -> None:
    """Stages of 1 s: each request alone takes 2 s a step, and two at a time are no slower."""
    model = Cpu("stages", (1.0, 0, 0, 0, 0), 0.0, 1, 128, stages=2)
    engines = Configuration("x", block_size=16).engines(model)
    assert [engine.scheduler.state.pool.size for engine in engines] == [4, 4]
    served = simulate_llm(requests([16, 16], [3, 3], [0.0, 0.0]), engines)
    assert served.first_s.tolist() == [2.0, 3.0]
    assert served.end_s.tolist() == [6.0, 7.0]


def test_processes_side_by_side_give_what_one_gives(report: Report) -> None:
    told: list[float] = []
    chosen = [row.configuration for row in report.rows]
    parallel = replay_llm(
        load_llm(CHAT), chosen, slo=report.slo, jobs=2, progress=lambda share, what: told.append(share)
    )
    assert _without_speed(parallel) == _without_speed(report)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)


def test_a_report_says_what_differs(report: Report) -> None:
    labels = [row.label for row in report.rows]
    assert labels == [
        "sarathi(budget=256) + lru", "sarathi(budget=256) + none", "vllm + lru", "vllm + none"
    ]  # fmt: skip
    kept, dropped = report.rows[0].measures, report.rows[1].measures
    assert kept.prefix_hits > 0.1 > dropped.prefix_hits == 0.0
    assert kept.ttft_s.p50 < dropped.ttft_s.p50
    assert sorted(label for place in ranking(report, "ttft_p99") for label in place) == sorted(labels)
    data = json.loads(json.dumps(report.to_dict()))
    assert data["ranking"]["goodput"]
    assert data["rows"][0]["hourly"] == 5.07


def test_seeds_give_ranges() -> None:
    make = partial(_chat, "chat-like(rate=2,length=20s,limit=2048)")
    made = replay_llm(make, configurations([MODEL], ["vllm"]), seeds=range(3), jobs=1)
    low, high = made.rows[0].range["ttft_p50"]
    assert low < high
    assert low <= made.rows[0].measures.ttft_s.p50 <= high


def _chat(name: str, seed: int) -> LLMWorkload:
    return load_llm(name, seed=seed)


def test_it_is_shown(report: Report) -> None:
    from rich.console import Console

    console = Console(width=100, record=True, file=open("/dev/null", "w"))
    console.print(table(report))
    text = console.export_text()
    assert all(row.label in text for row in report.rows)
    assert "highest goodput" in text
    HTMLParser().feed(page := html(report))
    assert "Time to first token" in page
    assert page.count("<svg") == 3


def test_what_is_wrong_is_said_before_anything_runs() -> None:
    with pytest.raises(UnknownPolicy):
        configurations([MODEL], ["saratih"])
    with pytest.raises(UsageError, match="twice"):
        replay_llm(load_llm(CHAT), configurations([MODEL, MODEL]))
    with pytest.raises(UsageError, match="no recording"):
        replay_llm(load_llm(CHAT), configurations(["recorded"]))
    with pytest.raises(UsageError, match="blocks of 16"):
        replay_llm(load_llm(CHAT).with_blocks(16), configurations([MODEL], block_size=[32]))
    with pytest.raises(UsageError, match="no step model"):
        replay_llm(load_llm(CHAT), configurations(["nothing"]))


def test_a_recording_states_its_own_error(tmp_path: Path) -> None:
    serve(tmp_path / "chat.jsonl", requests=80)
    recording = read(tmp_path / "chat.jsonl")
    chosen = configurations(["recorded"], ["sarathi(budget=64)", "vllm"])
    found = replay_llm(recording, chosen, jobs=1)
    assert found.gap is not None
    assert set(found.gap.gap) == {"ttft_p50", "ttft_p95", "tpot_p50", "tpot_p95"}
    same = found.rows[0].measures.ttft_s.p50
    assert same == pytest.approx(found.gap.ttft_s.p50, rel=0.05)  # it was live under that policy
    assert "its own error" in html(found).lower() or "How far to trust" in html(found)


def test_guesses_are_replayed() -> None:
    """All right ones make answers come sooner, wrong ones change nothing but the steps' sizes, and both are told."""
    workload = load_llm("chat-like(rate=0.2,length=60s,limit=1024)")
    found = {}
    for hits in ((0.0,), (1.0,)):
        chosen = configurations([MODEL], speculation=["off", "sequence(depth=4,fixed=true)"], hits=(hits,))
        report = replay_llm(workload, chosen, jobs=1)
        off, on = report.rows
        assert [off.label, on.label] == ["off", "sequence(depth=4,fixed=true)"]
        assert "Guesses" not in off.model
        assert f"by rank, the first ones {hits[0]:.0%}" in on.model
        found[hits[0]] = on.measures.tpot_s.p50 / off.measures.tpot_s.p50
    assert found[1.0] < 0.35
    assert found[0.0] >= 1.0
    (assumed,) = replay_llm(workload, configurations([MODEL], speculation=["specinfer"]), jobs=1).rows
    assert "is assumed" in assumed.model
    with pytest.raises(UsageError, match="more often"):
        configurations([MODEL], hits=((0.7, 0.4),))


def test_a_fit_may_be_a_recording(tmp_path: Path) -> None:
    serve(tmp_path / "chat.jsonl")
    model = step_model(f"cpu({tmp_path / 'chat.jsonl'})")
    assert model.seconds(Load.of([(64, 0)])) > 0
