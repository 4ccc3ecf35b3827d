from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from real import started


@pytest.fixture
def one_machine() -> None:
    """Skips a test of what clients and instances of one machine share, or of a second cloud on the same machines."""
    if os.environ.get("NUBES_ON") == "ray":
        pytest.skip("instances are on other machines than their client")


@pytest.fixture(scope="module")
def plane(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, state: Callable[[], dict[str, str]]
) -> Iterator[Path]:
    """The data folder of a control plane for one module's tests; the module's `PLANE` holds its variables."""
    folder = tmp_path_factory.mktemp("nubes")
    with started(folder, {**getattr(request.module, "PLANE", {}), **state()}):
        yield folder
