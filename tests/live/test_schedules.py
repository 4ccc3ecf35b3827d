"""Calls by the clock: they fire, and one that fails leaves its traceback where its user looks for it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from real import until

import nubes
from nubes.drivers.local import logstore
from nubes.drivers.local.unattended import report

SLOW_STATES = ("ray",)


@pytest.fixture(scope="module", autouse=True)
def folder(plane: Path) -> Path:
    return plane


def lines(folder: Path, function: str) -> list[logstore.Line]:
    return logstore.read(folder / "logs", logstore.wanted(function))


def shown(*words: str) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "nubes.cli.main", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_a_period_of_a_fraction_of_a_second_keeps_time(tmp_path: Path) -> None:
    path = str(tmp_path / "ticks")
    app = nubes.App("fast")

    def tick() -> None:
        with open(path, "a") as file:
            file.write(f"{time.time()}\n")

    app.function(name="tick", schedule=nubes.Period(seconds=0.25))(tick)
    with app.run():
        until(lambda: Path(path).exists() and len(Path(path).read_text().split()) >= 6)
    times = [float(at) for at in Path(path).read_text().split()]
    assert times[5] - times[1] > 0.7  # not all at once; the first waited for its instance


def test_a_scheduled_call_that_fails_tells_the_log_which_when_and_why(folder: Path) -> None:
    app = nubes.App("failing")

    def broken() -> None:
        raise LookupError("nothing to report today")

    def slow() -> None:
        time.sleep(30)

    app.function(name="broken", schedule=nubes.Period(seconds=0.3))(broken)
    app.function(name="slow", schedule=nubes.Period(seconds=0.3), timeout=0.2)(slow)
    begun = time.time()
    with app.run():
        until(lambda: len([x for x in lines(folder, "failing/broken") if "LookupError" in x.text]) >= 2)
        until(lambda: [x for x in lines(folder, "failing/slow") if "timeout" in x.text])
    told = lines(folder, "failing/broken")
    first = [line for line in told if line.call == told[0].call]
    assert told[0].text == f"A scheduled call ended as FAILED: {nubes.ids.show(told[0].call)}"
    assert first[1].text.startswith("Traceback")
    assert first[-1].text == "LookupError: nothing to report today"
    assert any("in broken" in line.text for line in first)
    assert {line.stream for line in told} == {"stderr"}
    assert begun < told[0].at < time.time()
    assert "ended as TIMED_OUT" in lines(folder, "failing/slow")[0].text


def test_the_command_shows_it(folder: Path) -> None:
    call = lines(folder, "failing/broken")[0].call
    out = shown("logs", "failing/broken", "--timestamps").splitlines()
    when, label, text = out[0].split(" ", 2)
    assert abs(datetime.fromisoformat(when).timestamp() - time.time()) < 300.0
    assert (label, text.split(":")[0]) == ("[broken]", "A scheduled call ended as FAILED")
    ours = [json.loads(line) for line in shown("logs", nubes.ids.show(call), "--json").splitlines()]
    assert {line["call_id"] for line in ours} == {nubes.ids.show(call)}
    assert ours[-1]["text"] == "LookupError: nothing to report today"


def test_a_spawned_call_is_told_of_too_unless_somebody_waits(folder: Path) -> None:
    app = nubes.App("spawned")

    def broken(seconds: float) -> None:
        time.sleep(seconds)
        raise LookupError(f"after {seconds}")

    function = app.function(name="broken")(broken)
    with app.run():
        call: Any = function.spawn(0.0)
        until(lambda: lines(folder, "spawned/broken"))
        with pytest.raises(LookupError, match="after"):
            call.get()
        with pytest.raises(LookupError, match="after"):
            function.spawn(0.5).get()
        with pytest.raises(LookupError, match="after"):
            function.remote(0.0)
    told = [line.text for line in lines(folder, "spawned/broken")]
    assert told[0] == f"A spawned call ended as FAILED: {call.object_id}"
    assert [text for text in told if text.startswith("LookupError")] == ["LookupError: after 0.0"]


def test_what_cannot_be_told_is_said_so() -> None:
    assert report(5, "FAILED", "", b"").endswith("It gave no reason.")
    assert report((1 << 62) + 1, "FAILED", "No instance would start.", b"").startswith("A scheduled call")
