"""`nubes storm` from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("greenlet", reason="needs the package greenlet: pip install 'nubes[storm]'")

APPS = Path(__file__).parent / "apps"


def storm(*words: str | Path) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NUBES_")}
    argv = [sys.executable, "-m", "nubes.cli.main", "storm", *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, env=kept, timeout=200)


def app(folder: Path, body: str) -> Path:
    path = folder / "app.py"
    path.write_text(f"import nubes\n\napp = nubes.App('app')\n\n\n{body}")
    return path


FUNCTION = "@app.function()\ndef f():\n    pass\n\n\n"
SCENARIO = "@app.scenario\ndef day():\n    f.remote()\n\n\n"
INVARIANT = "@app.invariant\ndef holds():\n    pass\n"


def test_what_is_found_is_told_saved_and_replayed(tmp_path: Path) -> None:
    found = storm(APPS / "charge.py", "--days", "100", "--save", tmp_path / "storm.json")
    assert found.returncode == 1, found.stderr
    assert "every_order_is_charged_once does not hold: Charges by order: {'tea': 2}." in found.stdout
    assert "after operation 2 of charge (call 1, attempt 1), its instance is killed" in found.stdout
    assert f"--replay {tmp_path / 'storm.json'}" in found.stdout
    again = storm(APPS / "charge.py", "--replay", tmp_path / "storm.json", "--live")
    assert again.returncode == 1, again.stderr
    assert "Simulated: every_order_is_charged_once does not hold" in again.stdout
    assert "Live it repeats: every_order_is_charged_once does not hold" in again.stdout
    mended = storm(APPS / "charge_mended.py", "--replay", tmp_path / "storm.json", "--json")
    assert mended.returncode == 0, mended.stderr
    assert json.loads(mended.stdout)["breaks"] == ""


def test_where_nothing_is_found_the_code_is_zero(tmp_path: Path) -> None:
    done = storm(app(tmp_path, FUNCTION + SCENARIO + INVARIANT), "--days", "60", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["days"], told["found"]) == (60, None)


def test_json_holds_the_schedule_and_the_story() -> None:
    done = storm(APPS / "charge.py", "--days", "100", "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)["found"]
    assert found["breaks"] == "every_order_is_charged_once"
    assert [fault["kind"] for fault in found["schedule"]["faults"]] == ["kill"]
    assert any("FAULT" in line for line in found["story"])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (FUNCTION + INVARIANT, "no @app.scenario"),
        (FUNCTION + SCENARIO, "no @app.invariant"),
        ("import nothing_of_this_name\n", "nothing_of_this_name"),
        ("raise RuntimeError('not today')\n", "not today"),
    ],
)
def test_an_app_that_cannot_be_stormed_says_why(tmp_path: Path, body: str, said: str) -> None:
    done = storm(app(tmp_path, body), "--days", "10")
    assert done.returncode in (1, 2)
    assert said in done.stderr


def test_a_day_that_ends_its_process_is_named(tmp_path: Path) -> None:
    body = "import os\n\n\n@app.function()\ndef f():\n    os._exit(3)\n\n\n" + SCENARIO + INVARIANT
    done = storm(app(tmp_path, body), "--days", "10")
    assert done.returncode == 1
    assert "Day 0 cannot be played to its end: it exits with code 3." in done.stderr


def test_a_day_that_never_comes_to_rest_is_found(tmp_path: Path) -> None:
    waits = "@app.scenario\ndef day():\n    nubes.Queue.from_name('q', create_if_missing=True).get()\n\n\n"
    done = storm(app(tmp_path, FUNCTION + waits + INVARIANT), "--days", "1")
    assert done.returncode == 1
    assert "comes_to_rest does not hold" in done.stdout
    assert "the scenario waits for items of queue 'q'" in done.stdout


def test_modules_beside_the_app_belong_to_an_instance_too(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text(
        "count = 0\n\n\ndef bump():\n    global count\n    count += 1\n    return count\n"
    )
    body = (
        "import helper\n\ncounts = []\n\n\n@app.function(retries=5)\ndef f():\n    return helper.bump()\n\n\n"
        "@app.scenario\ndef day():\n    counts.append(f.remote())\n    counts.append(f.remote())\n    counts.append(helper.bump())\n\n\n"
        "@app.invariant\ndef holds():\n    return None if counts[:3] == [1, 2, 1] else f'{counts}'\n"
    )
    quiet = storm(app(tmp_path, body), "--days", "1", "--json")
    assert quiet.returncode == 0, quiet.stdout + quiet.stderr
    killed = tmp_path / "killed.json"
    fault = {"kind": "kill", "call": "2", "function": "f"}
    killed.write_text(json.dumps({"scenario": "day", "faults": [fault]}))
    done = storm(tmp_path / "app.py", "--replay", killed, "--json")
    assert json.loads(done.stdout)["message"] == "[1, 1, 1]"


def test_a_schedule_of_another_app_is_refused(tmp_path: Path) -> None:
    (tmp_path / "storm.json").write_text('{"scenario": "night"}')
    done = storm(APPS / "charge.py", "--replay", tmp_path / "storm.json")
    assert done.returncode == 2
    assert "no scenario 'night'" in done.stderr
    assert "There are: day." in done.stderr
