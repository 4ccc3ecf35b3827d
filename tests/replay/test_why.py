"""Explanations: never empty, true to what happened, and every stored view gives the same decision again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nubes.functions import events as e
from nubes.functions.spec import FunctionSpec
from nubes.kernel.errors import NotFound
from nubes.replay.why import Explanation, explain, why
from nubes.workloads import Workload, load
from nubes.workloads.recording import write_events

from .small import GIB, random_workload, run, workload


@pytest.mark.parametrize(
    ("keep_alive", "queueing", "cold_start", "made"),
    [
        ("cidre", "fifo", "seuss", "azure-like(functions=40,length=100m)"),
        ("hybrid-histogram", "fifo", "fresh", "poisson(functions=3,rate=0.2,length=10m)"),
        ("faascache", "edf", "sock", "bursty(functions=4,length=5m)"),
    ],
)
def test_chains_are_never_empty_and_views_give_the_same_decision(
    keep_alive: str, queueing: str, cold_start: str, made: str
) -> None:
    loaded = load(made)
    assert isinstance(loaded, Workload)
    outcome = run(
        loaded, keep_alive, queueing=queueing, cold_start=cold_start, memory_bytes=3 * GIB, cpu=6, record=True
    )
    calls = range(min(10_000, loaded.calls))
    explanations = explain(outcome.log, calls)
    assert len(explanations) == len(calls)
    decisions = {}  # calls share steps
    for call in calls:
        found = explanations[call]
        assert found.steps
        assert found.verdict
        assert any(isinstance(step.event, e.Submitted) and step.event.call == call for step in found.steps)
        decisions |= {id(decision): decision for decision in found.decisions}
    assert len(decisions) > len(calls) / 2
    for decision in decisions.values():
        assert decision.again() == decision.choice


def test_ten_thousand_calls_were_asked_about() -> None:
    loaded = load("azure-like(functions=40,length=100m)")
    assert isinstance(loaded, Workload)
    assert loaded.calls >= 10_000


def _roles(found: Explanation) -> list[str]:
    return [step.role for step in found.steps]


def test_cold_warm_and_delayed_calls_say_why() -> None:
    made = workload([(0.0, 1.0), (11.0, 1.0), (11.5, 1.0), (60.0, 1.0)], start_s=[10.0], seconds=80.0)
    log = run(made, record=True).log
    first, warm, delayed, again = (why(log, call) for call in range(4))
    assert first.verdict.startswith("No instance of its function was loaded yet. It waited 10 s and got instance 1")
    assert warm.verdict.startswith("An idle instance took it at once: instance 1.")
    assert "instance 1 fell idle" in _roles(warm)
    assert [d.question for d in warm.decisions].count("window") >= 1
    assert delayed.verdict.startswith("The one instance of its function was busy. It waited 500 ms and got instance 1")
    assert again.verdict.startswith("No instance of its function was loaded: its keep-alive ran out. It waited 10 s")
    assert any("was stopped: its keep-alive ran out" in role for role in _roles(again))
    assert first.status == "SUCCEEDED"


def test_it_says_which_policy_decided_and_what_lost() -> None:
    log = run(random_workload(4), "lru", memory_bytes=GIB, record=True).log
    rankings = [d for found in explain(log, range(60)).values() for d in found.decisions if d.question == "priority"]
    assert rankings
    assert {d.policy for d in rankings} == {"lru"}


def test_calls_that_share_an_answer_or_never_ran_say_so() -> None:
    spec = FunctionSpec(name="a/f", max_queued=1)
    log = [
        (0.0, e.Deployed("a", 1, (spec,))),
        (1.0, e.Submitted(1, "a/f", key="k")),
        (1.5, e.Submitted(2, "a/f", key="k")),
        (2.0, e.Submitted(3, "a/f")),
        (2.5, e.Cancelled(1)),
    ]
    found = explain(log, [1, 2, 3])
    assert "shares its answer" in found[2].verdict
    assert found[3].status == "FAILED"
    assert "is full" in found[3].verdict
    assert found[1].status == "CANCELLED"


def test_a_policy_that_was_switched_is_the_one_that_is_asked() -> None:
    log = run(workload([(0.0, 1.0), (30.0, 1.0)], seconds=60.0), record=True).log
    switched = [*log[:-1], (29.0, e.PolicySet("keep-alive", "no-unload")), log[-1]]
    switched.sort(key=lambda entry: entry[0])
    found = why(switched, 1)
    assert {d.policy for d in found.decisions if d.seam == "keep-alive" and d.at >= 29.0} == {"no-unload"}


def test_it_reads_a_folder_and_shows_itself(tmp_path: Path) -> None:
    from rich.console import Console

    log = run(random_workload(4), "cidre", cold_start="seuss", memory_bytes=GIB, record=True).log
    write_events(tmp_path, log)
    found = why(tmp_path, 10)
    console = Console(width=120, record=True, file=open("/dev/null", "w"))
    console.print(found)
    text = console.export_text()
    assert "the call arrived" in text
    assert "cidre (keep-alive) was asked" in text
    built = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert built["steps"][0]["event"]["kind"]
    with pytest.raises(NotFound):
        why(tmp_path, 999)
