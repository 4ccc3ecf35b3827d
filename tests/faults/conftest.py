from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from killable import Plane

from nubes import client as clients


@pytest.fixture
def plane(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("NUBES_DATA", str(folder))
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
