"""One `nubes up` with an app deployed, for all tests."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from gateway.running import NUBES, Up, start

FOLDER = Path(__file__).parent


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    running = start(tmp_path_factory.mktemp("up") / "data")
    env = {**os.environ, "NUBES_DATA": str(running.data)}
    subprocess.run(
        [*NUBES, "deploy", str(FOLDER / "webapp.py")], env=env, check=True, stdout=subprocess.DEVNULL, timeout=60
    )
    yield running
    running.process.terminate()
    assert running.process.wait(timeout=40) == 0


@pytest.fixture(scope="session")
def client(up: Up) -> Iterator[httpx2.Client]:
    with up.client() as client:
        yield client
