"""The ten minutes of CONTRIBUTING.md, step by step, as they stand there."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from documents import ROOT, commands, files, section

TEN_MINUTES = section((ROOT / "CONTRIBUTING.md").read_text(), "## A policy in ten minutes")
STEPS = (
    "### 1. Write it",
    "### 2. Try it",
    "### 3. Share it as a package of your own",
    "### 4. Or put it in the box",
)


class Reader:
    """Does what the steps say, in a folder of its own. What `pip` installs goes into a folder beside it."""

    def __init__(self, folder: Path) -> None:
        self.here = folder / "work"
        self.site = folder / "site"
        self.here.mkdir()
        self.path = [str(self.site)]
        self.data = folder / "data"

    def write(self, step: str) -> None:
        for name, content in files(section(TEN_MINUTES, step)).items():
            path = self.here / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    def run(self, step: str) -> dict[str, str]:
        """Command -> what it printed; each has to end well."""
        said = {}
        for line in commands(section(TEN_MINUTES, step)):
            words = [{"python": sys.executable}.get(word, word) for word in shlex.split(line)]
            if words[0] == "nubes":
                words[:1] = [sys.executable, "-m", "nubes.cli.main"]
            elif words[0] == "pip":
                words[:2] = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--target", str(self.site)]
            env = {**os.environ, "PYTHONPATH": os.pathsep.join(self.path), "NUBES_DATA": str(self.data)}
            env.pop("NUBES_TRACES", None)
            done = subprocess.run(words, cwd=self.here, env=env, capture_output=True, text=True, timeout=240)
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            said[line] = done.stdout
        return said


def starting(said: dict[str, str], words: str) -> str:
    return next(text for line, text in said.items() if line.startswith(words))


def test_there_are_no_other_steps() -> None:
    assert tuple(line for line in TEN_MINUTES.splitlines() if line.startswith("### ")) == STEPS


def test_a_policy_is_tried_and_shared_as_a_package(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    reader.write(STEPS[0])
    tried = starting(reader.run(STEPS[1]), "nubes try")
    assert "patience.py against" in tried
    assert "cold starts: better than" in tried

    reader.write(STEPS[2])
    said = reader.run(STEPS[2])
    listed = starting(said, "nubes policy list")
    assert "patience" in listed
    assert "Stay loaded for `factor` times the usual gap" in listed
    replayed = starting(said, "nubes replay")
    assert "patience(factor=10)" in replayed
    assert "fewest cold starts:" in replayed


def test_a_policy_is_put_in_the_box(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    passing_by = shutil.ignore_patterns("__pycache__")
    for name in ("src", "tests", "docs"):
        shutil.copytree(ROOT / name, reader.here / name, ignore=passing_by)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, reader.here)
    reader.path.insert(0, str(reader.here / "src"))
    reader.write(STEPS[0])
    said = reader.run(STEPS[3])
    assert "patience" in starting(said, "nubes policy list")
    assert " passed" in starting(said, "python -m pytest")
    assert "`patience`" in (reader.here / "docs" / "policies.md").read_text()
