"""A data folder of its own for each test, or one cloud that a module's tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.command_line import Nubes, command


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
