"""Real chaos, for half a minute; longer where `-m slow` is asked for. The seed is printed with what was found."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from nubes.chaos import plants
from nubes.chaos.audit import audit
from nubes.chaos.cloud import Cloud, Plan
from nubes.chaos.faults import Breaker
from nubes.chaos.run import Report, gather, pause, rest, run
from nubes.chaos.schedule import Fault


def held(folder: Path, seed: int, seconds: float, machines: int, faults: str = "", rate: float = 0.6) -> Report:
    report = run(folder, Plan(machines, clients=3, seed=seed), seconds, rate, faults, tell=print)
    print(f"seed {seed}: {dict(report.faults)}")
    assert report.evidence.tolds
    assert report.faults
    return report


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run with one crash left, in which all is well: to lose something of."""
    folder = tmp_path_factory.mktemp("planted") / "run"
    cloud = Cloud(folder, Plan(clients=2, seed=5, disk_bytes=0))
    try:
        cloud.start()
        breaker = Breaker(cloud, [Fault(2.0, "kill-plane", 0.0, 0.5)])
        pause(cloud, breaker, 5.0)
        assert rest(cloud) == []
        assert cloud.shut_down() == []
        assert cloud.left_over() == []
    finally:
        cloud.close()
    assert audit(gather(folder)) == []
    return folder


@pytest.mark.parametrize("name", plants.PLANTS)
def test_the_auditor_notices_what_was_lost_on_purpose(quiet: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(quiet, folder)
    plants.plant(name, folder)
    found = {one.kind for one in audit(gather(folder))}
    assert found & set(plants.PLANTS[name][1]), found


def test_a_control_plane_that_answers_too_early_is_found_out(tmp_path: Path) -> None:
    report = run(tmp_path / "run", Plan(clients=3, seed=2), 12.0, 0.8, "kill-plane", plants.EARLY, print)
    assert report.faults["kill-plane"] > 0
    assert {"lost", "unanswered", "not-the-log"} & {one.kind for one in report.findings}, report.findings


@pytest.mark.parametrize(("machines", "seed"), [(0, 11), (2, 12)])
def test_nothing_is_lost(tmp_path: Path, machines: int, seed: int) -> None:
    report = held(tmp_path / "run", seed, 15.0, machines)
    assert report.findings == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_in_minutes(tmp_path: Path, seed: int) -> None:
    report = held(tmp_path / "run", seed, 180.0, 2)
    assert report.findings == []


@pytest.mark.slow
def test_nothing_is_lost_with_a_database(
    tmp_path: Path, postgres: Any, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    plan = Plan(clients=3, seed=21, database=postgres.new(), objects="s3://nubes/chaos")
    report = run(tmp_path / "run", plan, 45.0, 0.6, tell=print)
    assert report.faults
    assert report.findings == []
