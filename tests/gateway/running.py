"""`nubes up` as a process, on a free port."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2

NUBES = [sys.executable, "-m", "nubes.cli.main"]


class Up(NamedTuple):
    url: str
    token: str
    data: Path
    process: subprocess.Popen[str]

    def client(self, token: bool = True, **options: Any) -> httpx2.Client:
        headers = {"authorization": f"Bearer {self.token}"} if token else {}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=30, **options)


def start(data: Path, *flags: str) -> Up:
    """Starts `nubes up` on a free port and waits until it says where."""
    env = {**os.environ, "NUBES_DATA": str(data)}
    process = subprocess.Popen(
        [*NUBES, "up", "--port", "0", "--json", *flags], stdout=subprocess.PIPE, text=True, env=env, cwd=data.parent
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"it ended with {process.wait()}"
    said = json.loads(line)
    return Up(said["url"], Path(said["token_file"]).read_text().strip(), data, process)


@contextlib.contextmanager
def deployed(folder: Path, app: str) -> Iterator[Up]:
    """A cloud with one of the apps beside this file, until it has ended well."""
    running = start(folder / "data")
    env = {**os.environ, "NUBES_DATA": str(running.data)}
    path = Path(__file__).with_name(app)
    subprocess.run([*NUBES, "deploy", str(path)], env=env, check=True, stdout=subprocess.DEVNULL, timeout=60)
    yield running
    running.process.terminate()
    assert running.process.wait(timeout=60) == 0
