"""Runs the real command, each test in a data folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Nubes = Callable[..., subprocess.CompletedProcess[str]]
COMMAND = [sys.executable, "-m", "nubes.cli.main"]


def command(data: Path, cwd: Path) -> Nubes:
    def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("NUBES_") or k == "NUBES_TRACES"}
        own: dict[str, Any] = {**kept, "NUBES_DATA": str(data), "XDG_CONFIG_HOME": str(cwd / "config"), **env}
        return subprocess.run([*COMMAND, *words], capture_output=True, text=True, cwd=cwd, env=own, timeout=90)

    return run


@pytest.fixture
def nubes(tmp_path: Path) -> Nubes:
    return command(tmp_path / "data", tmp_path)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nubes]:
    """A `nubes up` in the background; its apps lie in the current folder."""
    folder = tmp_path_factory.mktemp("cloud")
    for app in (Path(__file__).parent / "apps").glob("*.py"):
        (folder / app.name).write_text(app.read_text())
    run = command(folder / "data", folder)
    up = run("up", "-d", "--port", "0", "--json")
    assert up.returncode == 0, up.stderr
    yield run
    assert run("down").returncode == 0
