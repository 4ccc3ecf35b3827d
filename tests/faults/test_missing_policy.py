"""A policy of another package that is gone when its control plane comes back."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
from nubes.functions.seams import KeepAlive, Window
from nubes.kernel.policy import policy

@policy("third-party")
class ThirdParty(KeepAlive):
    def window(self, f, now):
        return Window(0.0, 30.0)
"""
APP = """
import nubes
app = nubes.App("kept")

@app.function()
def plus(n):
    return n + 1
"""


@pytest.fixture
def nubes(tmp_path):
    """The command, with the package of the policy installed in `site`."""
    site = tmp_path / "site"
    (site / "third-1.dist-info").mkdir(parents=True)
    (site / "third.py").write_text(MODULE)
    (site / "third-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: third\nVersion: 1\n")
    (site / "third-1.dist-info" / "entry_points.txt").write_text("[nubes.policies]\nthird = third\n")
    (tmp_path / "kept.py").write_text(APP)
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "NUBES_DATA": str(tmp_path / "data"), "PYTHONPATH": path}

    def run(*words):
        command = [sys.executable, "-m", "nubes.cli.main", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=90)

    yield run
    run("down")


def said(done):
    return done.stderr.strip().splitlines()


@pytest.mark.parametrize("how", ["ended", "killed", "only the snapshot is left"])
def test_it_is_said_in_a_sentence_and_nothing_is_lost(nubes, tmp_path, how):
    up = nubes("up", "-d", "--port", "0", "--keep-alive", "third-party", "--json")
    assert up.returncode == 0, up.stderr
    assert nubes("deploy", "kept.py").returncode == 0
    call = nubes("invoke", "kept/plus", "1", "--spawn").stdout.strip()
    assert nubes("call", "get", call).stdout.strip() == "2"
    if how == "killed":
        os.kill(int((tmp_path / "data" / "log" / "lock").read_text()), signal.SIGKILL)
    else:
        assert nubes("down").returncode == 0
    if how == "only the snapshot is left":
        for segment in (tmp_path / "data" / "log").glob("*.log"):
            segment.unlink()
    shutil.move(tmp_path / "site", tmp_path / "elsewhere")

    before = files(tmp_path / "data" / "log")
    for words in (("up", "--port", "0"), ("up", "-d", "--port", "0"), ("up", "--port", "0", "--keep-alive", "lru")):
        refused = nubes(*words)
        assert refused.returncode == 2
        (line,) = said(refused)
        assert "is not installed any more" in line
        assert "third" in line
        assert "Install the package it came with again" in line
    embedded = nubes("run", "kept.py::plus", "1")
    assert embedded.returncode == 75
    assert "Install the package it came with again" in said(embedded)[-1]
    assert before.items() <= files(tmp_path / "data" / "log").items()  # at most an empty segment was begun

    shutil.move(tmp_path / "elsewhere", tmp_path / "site")
    up = nubes("up", "-d", "--port", "0")
    assert up.returncode == 0, up.stderr
    assert nubes("call", "get", call).stdout.strip() == "2"
    assert nubes("invoke", "kept/plus", "4").stdout.strip() == "5"


def files(folder: Path) -> dict[str, bytes]:
    """What a log's folder holds, but for the lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}
