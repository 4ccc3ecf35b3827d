"""Plays a schedule for real: a control plane of its own in a scratch folder, real instances, real SIGKILL."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import msgspec

from nubes.kernel.errors import NubesError, Unavailable
from nubes.storm.crew import SOURCE
from nubes.storm.inside import VARIABLE, Stage
from nubes.storm.spec import Outcome, Schedule

LONGEST_S = 600.0
_LOOK_S = 0.02


class Verdict(msgspec.Struct, frozen=True):
    """How the day ended for real; `faults` came about."""

    breaks: str = ""
    message: str = ""
    stopped: str = ""
    faults: int = 0
    seconds: float = 0.0


def play(what: str, schedule: Schedule, outcome: Outcome) -> Verdict:
    """Plays the day of `schedule` on the local driver, in the order in which its simulation (`outcome`) went.

    Raises `NubesError` if it cannot be played.
    """
    folder = Path(tempfile.mkdtemp(prefix="nubes-storm-"))
    begun = time.monotonic()
    try:
        Stage.prepare(folder / "stage", schedule, outcome.order)
        cloud = Cloud(folder)
        try:
            verdict = _perform(what, folder, cloud.env)
        finally:
            cloud.close()
        fired = (folder / "stage" / "fired").read_bytes().count(b"\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return msgspec.structs.replace(verdict, faults=fired, seconds=time.monotonic() - begun)


def _perform(what: str, folder: Path, env: dict[str, str]) -> Verdict:
    argv = [sys.executable, "-P", "-m", "nubes.storm.player", what]
    complaints = folder / "player.log"
    with open(complaints, "wb") as log:
        player = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, env=env)
        try:
            said, _ = player.communicate(timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            raise NubesError(f"The day did not end within {LONGEST_S:g} s.") from None
        finally:
            player.kill()
    if player.returncode or not said:
        lines = complaints.read_text(errors="replace").strip().splitlines()
        raise NubesError("The day could not be played live: " + (lines[-1] if lines else "it said nothing") + ".")
    return msgspec.json.decode(said.splitlines()[-1], type=Verdict)


class Cloud:
    """A control plane on a folder, which comes back whenever it is killed. Its clients find it by `env`."""

    def __init__(self, folder: Path) -> None:
        self._stage = folder / "stage"
        self._data = folder / "data"
        env = {name: value for name, value in os.environ.items() if not name.startswith("NUBES_")}
        env |= {
            "NUBES_DATA": str(self._data),
            VARIABLE: str(self._stage),
            "PYTHONHASHSEED": "0",
            "PYTHONPATH": os.pathsep.join(filter(None, [SOURCE, env.get("PYTHONPATH", "")])),
        }
        self.env = env
        self._closing = threading.Event()
        self._watch, self._hold = os.pipe()  # the control plane ends when this process does
        self._process = self._start()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _start(self) -> subprocess.Popen[bytes]:
        reading, writing = os.pipe()
        argv = [
            sys.executable,
            "-P",
            "-m",
            "nubes.drivers.local.server",
            str(self._data),
            str(self._watch),
            str(writing),
        ]
        process = subprocess.Popen(argv, pass_fds=(self._watch, writing), stdin=subprocess.DEVNULL, env=self.env)
        os.close(writing)
        ready = os.read(reading, 1)
        os.close(reading)
        if not ready:
            process.wait()
            raise Unavailable("The control plane of the live storm did not start.", "What it said stands above.")
        (self._stage / "plane").write_text(str(process.pid))
        return process

    def _keep(self) -> None:
        while not self._closing.wait(_LOOK_S):
            if self._process.poll() is not None and not self._closing.is_set():
                self._process = self._start()

    def close(self) -> None:
        self._closing.set()
        self._keeper.join()
        os.close(self._hold)
        os.close(self._watch)
        self._process.terminate()
        self._process.wait()
