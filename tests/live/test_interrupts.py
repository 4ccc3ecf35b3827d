"""Ctrl-C in a client withdraws its work; a second one leaves at once. And calls by the clock."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import calls_app as app
import pytest
from real import script, status, until

import nubes

SLOW_STATES = ("ray",)

CLIENT = "import calls_app as a, nubes\na.app.deployment.attach()\n"


@pytest.fixture(scope="module", autouse=True)
def running(plane: Path) -> Iterator[None]:
    with app.app.run():
        yield


def interrupt(process: subprocess.Popen[str], times: int = 1) -> str:
    """Ctrl-C, and what the program said when it left; it must do so soon."""
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    _, err = process.communicate(timeout=10)
    return err


@pytest.mark.parametrize("how", ["a.mark.remote(path, 2.0)", "list(a.mark.map([path], [2.0]))"])
def test_ctrl_c_cancels_the_call(how: str, tmp_path: Path) -> None:
    path = tmp_path / "call"
    process = script(f"{CLIENT}path = sys.argv[1]\n{how}", str(path))
    until((tmp_path / "call.begun").exists)
    assert "KeyboardInterrupt" in interrupt(process)
    assert process.returncode == -signal.SIGINT
    until(lambda: not [c for c in status()["calls"] if c["function"] == "calls/mark"])
    time.sleep(2.0)
    assert not (tmp_path / "call.done").exists()


def test_ctrl_c_leaves_a_spawned_call_alone(tmp_path: Path) -> None:
    path = tmp_path / "call"
    process = script(
        f"{CLIENT}call = a.mark.spawn(sys.argv[1], 1.0)\nprint(call.object_id, flush=True)\ncall.get()", str(path)
    )
    assert process.stdout is not None
    id = process.stdout.readline().strip()
    until((tmp_path / "call.begun").exists)
    interrupt(process)
    assert nubes.FunctionCall.from_id(id).get(timeout=10) is None
    assert (tmp_path / "call.done").exists()


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_an_embedded_cloud_too(times: int, tmp_path: Path, one_machine: None) -> None:
    """A program with a cloud of its own, interrupted in a call of an instance that takes its time to stop."""
    path = tmp_path / "call"
    text = (
        "import os; os.environ['NUBES_DATA'] = sys.argv[2]\nimport calls_app as a, nubes\n"
        "with a.app.run():\n    a.mark.remote(sys.argv[1], 30.0)\n"
    )
    process = script(text, str(path), str(tmp_path / "data"))
    until((tmp_path / "call.begun").exists)
    begun = time.monotonic()
    assert "KeyboardInterrupt" in interrupt(process, times)
    assert time.monotonic() - begun < 5
    until(lambda: not (tmp_path / "data" / "socket").exists())


def test_a_period_calls_again_and_again(tmp_path: Path) -> None:
    ticking = nubes.App("ticking")
    path = str(tmp_path / "ticks")
    ticking.function(name="tick", schedule=nubes.Period(seconds=0.4))(lambda: open(path, "a").write("x"))
    with ticking.run():
        until(lambda: Path(path).exists() and len(Path(path).read_text()) >= 3)
    time.sleep(0.3)
    count = len(Path(path).read_text())
    time.sleep(0.7)
    assert len(Path(path).read_text()) == count


def test_schedules_that_cannot_be() -> None:
    assert nubes.Cron("0 6 * * 1-5", timezone="Europe/Berlin").cron == "0 6 * * 1-5"
    with pytest.raises(nubes.UsageError, match="is not a schedule"):
        nubes.Cron("61 * * * *")
    with pytest.raises(nubes.UsageError, match="is not a schedule"):
        nubes.Cron("* * * * *", timezone="Mars/Olympus")
    with pytest.raises(nubes.UsageError, match="needs a length"):
        nubes.Period()
