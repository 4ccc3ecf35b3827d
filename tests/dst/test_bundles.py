"""A bundle opens in the state before a record, walks both ways, explains, and keeps no secrets."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from nubes import ids
from nubes.drivers.local.journal import Journal
from nubes.drivers.local.state import open_state
from nubes.drivers.sim.faults.mutations import applied, find
from nubes.drivers.sim.faults.trying import run, story
from nubes.functions import events as e
from nubes.functions.controller import Functions
from nubes.functions.spec import FunctionSpec
from nubes.kernel.errors import UsageError
from nubes.kernel.fingerprint import fingerprint
from nubes.kernel.frames import frame
from nubes.kernel.log import Log
from nubes.kernel.message import Codec
from nubes.replay.bundle import load, of_folder, write

CODEC = Codec(e.EVENTS)
SPEC = FunctionSpec(name="a/f", env={"TOKEN": "swordfish"}, secrets=("db",))
EVENTS = [
    e.MachineReady(4.0, 1 << 30),
    e.Deployed("a", 1, (SPEC,)),
    e.Submitted(7, "a/f", True, input=b"swordfish"),
    e.InstanceReady(1),
    e.Finished(7, 1, True, 0.1, b"swordfish too", "", True),
    e.Submitted(8, "a/f", True, input=b"more"),
]
RECORDS = [CODEC.encode(100.0 + n, event) for n, event in enumerate(EVENTS)]


def nubes(*words: str, told: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nubes.cli.main", *words]
    return subprocess.run(command, input=told, capture_output=True, text=True, timeout=60, check=False)


def folded(count: int) -> Functions:
    state = Functions()
    for record in RECORDS[:count]:
        now, event = CODEC.decode(record)
        state.handle(event, now)
    return state


def test_it_opens_where_it_says_and_goes_anywhere(tmp_path: Path) -> None:
    about = write(tmp_path / "b", RECORDS, 3, wrong="something")
    opened, told = load(tmp_path / "b")
    assert told == about
    assert (told["wrong"], told["at"], told["count"]) == ("something", 3, 6)
    assert opened.event == EVENTS[3]
    assert (opened.number, opened.now) == (3, 103.0)
    assert opened.hash == fingerprint(folded(3)) == told["hash"]
    assert any(isinstance(command, e.Dispatch) for command in opened.step())
    opened.step(2)
    assert opened.event is None
    assert opened.hash == fingerprint(folded(6))
    with pytest.raises(UsageError, match="over"):
        opened.step()
    for number in (0, 5, 2):
        assert opened.go(number).hash == fingerprint(folded(number))
    assert opened.back().event == EVENTS[1]
    assert opened.wrong() == []
    assert "instance 1" in opened.why(7).verdict
    with pytest.raises(UsageError, match="no record 7"):
        opened.go(7)


def test_without_data_nothing_of_it_is_there(tmp_path: Path) -> None:
    write(tmp_path / "all", RECORDS)
    write(tmp_path / "none", RECORDS, data=False)
    found = [zipfile.ZipFile(tmp_path / name).read("events.log") for name in ("all", "none")]
    assert [b"swordfish" in raw for raw in found] == [True, False]
    assert load(tmp_path / "none")[0].go(6).state.calls.keys() == folded(6).calls.keys()


def test_a_log_whose_beginning_is_gone(tmp_path: Path) -> None:
    state = pickle.dumps(folded(3), 5)
    write(tmp_path / "b", RECORDS[3:], 4, first=3, state=state)
    opened, _ = load(tmp_path / "b")
    assert opened.go(6).hash == fingerprint(folded(6))
    assert opened.go(3).hash == fingerprint(folded(3))
    with pytest.raises(UsageError, match="gone"):
        opened.why(7)


def test_a_folder_and_a_call_in_it(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    for record in RECORDS:
        log.append(record)
    log.close()
    assert of_folder(tmp_path, tmp_path / "b")["at"] == 6
    assert of_folder(tmp_path, tmp_path / "b", call=7)["at"] == 4, "its answer was what was last decided on"
    with pytest.raises(UsageError, match="Nothing was decided"):
        of_folder(tmp_path, tmp_path / "b", call=99)
    with pytest.raises(UsageError, match="holds no log"):
        of_folder(tmp_path / "nowhere", tmp_path / "b")


def test_the_command_line(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    for record in RECORDS:
        log.append(record)
    log.close()
    file = str(tmp_path / "b")
    made = nubes("bundle", "-o", file, "--at", ids.show(7), "--data", str(tmp_path))
    assert made.returncode == 0, made.stderr
    assert "before record 4 of 6" in made.stdout
    shown = nubes("open", file, "--at", "2", "--json")
    assert '"kind": "Submitted"' in shown.stdout
    assert fingerprint(folded(2)) in shown.stdout
    spoken = nubes("open", file, told="event.call\nstep()\nnumber\nwrong()\n")
    assert spoken.returncode == 0, spoken.stderr
    assert "Before record 4 of 6" in spoken.stderr
    assert spoken.stdout.startswith(">>> 7\n")
    assert "Dispatch" not in spoken.stdout
    assert ">>> 5\n" in spoken.stdout


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "no").write_text("no zip")
    with pytest.raises(UsageError, match="no bundle"):
        load(tmp_path / "no")

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return print, ("run",)

    write(tmp_path / "b", RECORDS[3:], 4, first=3, state=pickle.dumps(folded(3), 5))
    with zipfile.ZipFile(tmp_path / "b") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "b", "w") as archive:
        for name, raw in {**parts, "state": pickle.dumps(Evil(), 5)}.items():
            archive.writestr(name, raw)
    with pytest.raises(UsageError, match=r"builtins\.print"):
        load(tmp_path / "b")
    with zipfile.ZipFile(tmp_path / "b", "w") as archive:
        for name, raw in {**parts, "events.log": parts["events.log"][:-1]}.items():
            archive.writestr(name, raw)
    with pytest.raises(UsageError, match="damaged"):
        load(tmp_path / "b")
    assert frame(b"")  # what the log is made of


def test_a_failure_in_a_simulated_world_becomes_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with applied(find("a call is resolved twice")):
        assert story(0, str(tmp_path / "b"))
    assert "nubes open" in capsys.readouterr().out
    opened, about = load(tmp_path / "b")
    assert "resolved twice" in about["wrong"]
    resolved = [command.call for command in opened.step() if isinstance(command, e.Resolve)]
    assert resolved, "the next step is the bad one"
    assert run(0).wrong == ""


def test_it_is_the_state_that_a_control_plane_recovers(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    for record in RECORDS[:4]:
        log.append(record)
    log.save_snapshot(b"x 1.0\n" + pickle.dumps(folded(4), 5))
    for record in RECORDS[4:]:
        log.append(record)
    log.close()
    about = of_folder(tmp_path, tmp_path / "b")
    journal = Journal(open_state(tmp_path))

    async def recovered() -> str:
        return fingerprint(journal.recover(asyncio.get_running_loop())[0])

    assert asyncio.run(recovered()) == about["hash"]
    journal.let_go()
