"""What holds for every policy in the box: plain data, repeatable, explainable."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from policy_cloud import Cloud

from nubes.functions.spec import Code, FunctionSpec
from nubes.kernel.decisions import Decision, Watched
from nubes.kernel.fingerprint import fingerprint
from nubes.kernel.policy import SEAMS, Policy, find, make, policies

OF_FUNCTIONS = ("keep-alive", "queueing", "cold-start")
ALL = [(cls.seam, cls.name) for seam in OF_FUNCTIONS for cls in policies(seam) if cls.__module__.startswith("nubes.")]
NAMES = {
    "keep-alive": {
        "always-delayed", "cidre", "cidre-bss", "cidre-css", "faascache", "fixed-window", "hybrid-histogram", "lru",
        "no-unload", "sand", "timer-aware",
    },
    "queueing": {"edf", "fifo", "peak-shaving", "sjf", "xfaas"},
    "cold-start": {"catalyzer", "flat-zygote", "fresh", "sand", "seuss", "sock", "zygote"},
}  # fmt: skip
IDS = {"catalyzer", "cidre", "faascache", "huawei-cold-starts", "hybrid-histogram", "sand", "seuss", "sock", "xfaas"}


def busy_day(**chosen: Any) -> Cloud:
    """An hour that makes policies decide: bursts, timers, rare calls, too little memory, asynchronous calls."""
    specs = [
        FunctionSpec(name="burst", cpu=0.5, memory_bytes=200 << 20, code=Code(imports=("numpy",))),
        FunctionSpec(
            name="timer", cpu=0.5, memory_bytes=300 << 20, trigger="timer", code=Code(imports=("numpy", "six"))
        ),
        FunctionSpec(name="rare", cpu=0.5, memory_bytes=400 << 20, quota="opportunistic", quota_cpu=0.1),
        FunctionSpec(name="queue", cpu=0.5, memory_bytes=100 << 20, trigger="queue", criticality=0),
    ]
    cold = {"burst": 2.0, "timer": 1.0, "rare": 5.0, "queue": 0.5}
    took = {"burst": 0.7, "timer": 0.2, "rare": 4.0, "queue": 1.0}
    policy = {seam.replace("-", "_"): text for seam, text in chosen.items()}
    cloud = Cloud(specs, cold, took, cpu=8.0, memory_bytes=1200 << 20, **policy)
    cloud.call("burst", *(600.0 * k + 0.1 * n for k in range(6) for n in range(12)))
    cloud.call("timer", *(300.0 * n for n in range(12)))
    cloud.call("rare", 10.0, 1000.0, 1001.0, 3000.0)
    cloud.call("queue", *(7.0 * n for n in range(500)))
    return cloud


def test_all_are_there() -> None:
    for seam, names in NAMES.items():
        assert names <= {name for where, name in ALL if where == seam}
        assert SEAMS[seam].default.partition("(")[0] in names
    assert {cls.paper.id for seam, name in ALL if (cls := find(seam, name)).paper} == IDS


@pytest.mark.parametrize(("seam", "name"), ALL)
def test_same_events_same_commands_also_after_a_snapshot(seam: str, name: str) -> None:
    straight = busy_day(**{seam: name})
    straight.run(3700.0)
    broken = busy_day(**{seam: name})
    broken.run(1234.5)
    broken.controller = pickle.loads(pickle.dumps(broken.controller))
    broken.run(3700.0)
    assert broken.log == straight.log
    assert fingerprint(broken.controller) == fingerprint(straight.controller)


@pytest.mark.parametrize(("seam", "name"), ALL)
def test_decisions_can_be_asked_about(seam: str, name: str) -> None:
    """The stored view gives the same decision, scores are numbers, and looking on changes nothing."""
    decisions: list[Decision] = []
    policy: Policy = make(seam, name)
    plain, watched = busy_day(**{seam: name}), busy_day(**{seam: policy})
    controller = watched.controller
    wrapped: Any = Watched(policy, decisions.append)
    if seam == "keep-alive":
        controller.keep_alives[""] = wrapped
        for f in controller.functions.values():
            f.keep_alive = wrapped
    elif seam == "queueing":
        controller.queueing = wrapped
    else:
        controller.tree.policy = wrapped
    plain.run(700.0)
    watched.run(700.0)
    assert watched.log == plain.log
    assert decisions
    for decision in decisions[:: max(1, len(decisions) // 200)]:
        assert decision.again() == decision.choice
        assert all(isinstance(name, str) and isinstance(score, (int, float)) for name, score in decision.scores)


@pytest.mark.parametrize(("seam", "name"), ALL)
def test_every_call_is_answered(seam: str, name: str) -> None:
    cloud = busy_day(**{seam: name})
    cloud.run(90_000.0)
    assert len(cloud.dispatched()) == cloud.calls
    assert not cloud.controller.calls
