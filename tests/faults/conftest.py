from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from killable import Plane

from nubes import client as clients


@pytest.fixture
def plane(tmp_path, monkeypatch, state):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, value in {"NUBES_DATA": str(folder), **state()}.items():
        monkeypatch.setenv(name, value)
    clients.disconnect()
    plane = Plane(folder).start()
    yield plane
    plane.stop()


@pytest.fixture
def work(plane):
    """The app of `apps/work.py`, deployed."""
    path = Path(__file__).parent / "apps" / "work.py"
    spec = importlib.util.spec_from_file_location("work", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["work"] = module
    spec.loader.exec_module(module)
    module.app.deploy()
    return module
