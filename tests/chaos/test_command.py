"""`nubes chaos` as a command: what it lists, what it refuses, what it exits with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nubes.chaos.plants import EARLY, PLANTS
from nubes.chaos.schedule import FAULTS


def nubes(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nubes.cli.main", "chaos", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_kinds_are_listed() -> None:
    told = json.loads(nubes("--list", "--json").stdout)
    assert list(told["faults"]) == list(FAULTS)
    assert list(told["plants"]) == [*PLANTS, EARLY]
    assert all(told["faults"].values())
    assert all(told["plants"].values())


@pytest.mark.parametrize("words", [("--faults", "kill-plain"), ("--plant", "drop-all"), ("--folder", ".")])
def test_what_is_not_there_is_said_before_anything_starts(words: tuple[str, str]) -> None:
    done = nubes("--minutes", "0.1", *words)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_loss_makes_it_fail_and_its_report_is_plain_data(tmp_path: Path) -> None:
    words = ("--minutes", "0.05", "--clients", "1", "--rate", "0", "--json", "--folder", str(tmp_path / "run"))
    done = nubes(*words, "--plant", "phantom")
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert [one["kind"] for one in report["findings"]] == ["not-asked"]
    assert report["operations"]["spawn"]["ACCEPTED"] > 0
    assert report["faults"] == {}
