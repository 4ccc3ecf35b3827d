"""Functions that name who balances or hedges their calls, on real processes."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import replicas_app as app
from real import status, until


@pytest.fixture(scope="module", autouse=True)
def running(plane: Path) -> Iterator[None]:
    with app.app.run():
        until(lambda: sum(i["state"] == "idle" for i in status()["instances"]) == 6)
        yield


def pids(function: str) -> list[int]:
    return [i["pid"] for i in status()["instances"] if i["function"] == f"replicas/{function}"]


def test_calls_at_once_go_to_different_instances() -> None:
    counts = Counter(app.balanced.map([0.3] * 6))
    assert sorted(counts.values()) == [2, 2, 2]


def test_a_stopped_instance_does_not_hold_up_its_calls() -> None:
    victim = pids("hedged")[0]
    data = os.urandom(3_000_000)  # through shared memory, which must stay until the victim is done with it, too
    os.kill(victim, signal.SIGSTOP)
    try:
        answers = [app.hedged.remote(data) for _ in range(6)]
    finally:
        os.kill(victim, signal.SIGCONT)
    assert victim not in {pid for pid, _ in answers}
    assert {size for _, size in answers} == {len(data)}
    (function,) = [f for f in status()["functions"] if f["name"] == "replicas/hedged"]
    assert 1 <= function["copies"] <= 4
    until(lambda: all(not i["load"] for i in status()["instances"]))  # what was called back has ended
    assert victim in {app.hedged.remote(b"")[0] for _ in range(6)}
