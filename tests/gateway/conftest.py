"""One `nubes up` with an app deployed, for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from gateway.running import Up, deployed

FOLDER = Path(__file__).parent


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with deployed(tmp_path_factory.mktemp("up"), "webapp.py") as running:
        yield running


@pytest.fixture(scope="session")
def client(up: Up) -> Iterator[httpx2.Client]:
    with up.client() as client:
        yield client
