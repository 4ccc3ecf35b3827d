from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from real import started


@pytest.fixture(scope="module")
def plane(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, state: Callable[[], dict[str, str]]
) -> Iterator[Path]:
    """The data folder of a control plane for one module's tests; the module's `PLANE` holds its variables."""
    folder = tmp_path_factory.mktemp("nubes")
    with started(folder, {**getattr(request.module, "PLANE", {}), **state()}):
        yield folder
