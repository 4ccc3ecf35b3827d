"""A real control plane with real processes, in a folder of its own, for each test module."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nubes import client

APPS = Path(__file__).parent / "apps"
sys.path.insert(0, str(APPS))


class started:
    """A control plane on `folder`, started by this process."""

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self._variables = {"NUBES_DATA": str(folder), **variables}
        self._before: dict[str, str | None] = {}

    def __enter__(self) -> client.Client:
        client.disconnect()
        self._before = {name: os.environ.get(name) for name in self._variables}
        os.environ.update(self._variables)
        return client.connect()

    def __exit__(self, *_: Any) -> None:
        client.disconnect()
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def script(text: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Another program of the same user, on the same control plane."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(APPS)!r})\n{text}", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def until(condition: Callable[[], Any], within_s: float = 10.0) -> Any:
    """The first true value of `condition`; fails if there is none in time."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"nothing came of it within {within_s} s")


def status() -> dict[str, Any]:
    """What `nubes ps` shows."""
    shown: dict[str, Any] = client.connect().ask("status")
    return shown
