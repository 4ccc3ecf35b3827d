"""Dicts and queues when the control plane is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from real import script, started

import nubes

STATES = ("folder", "servers")


def test_what_was_put_survives_a_kill_of_the_control_plane(
    tmp_path: Path, state: Callable[[], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in state().items():
        monkeypatch.setenv(name, value)
    text = (
        "import os; os.environ['NUBES_DATA'] = sys.argv[1]\nimport nubes, itertools\n"
        "d = nubes.Dict.from_name('d', create_if_missing=True)\n"
        "q = nubes.Queue.from_name('q', create_if_missing=True)\n"
        "held = nubes.Dict.ephemeral(); e = held.__enter__(); e['x'] = 1\n"
        "print(nubes.client.connect().pid, flush=True)\n"
        "for n in itertools.count():\n    d[n] = n; q.put(n); print(n, flush=True)\n"
    )
    process = script(text, str(tmp_path))
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    for _ in range(20):
        process.stdout.readline()
    os.kill(pid, signal.SIGKILL)
    out, err = process.communicate(timeout=20)
    acknowledged = int(out.split()[-1]) if out.split() else 19
    assert "Unavailable" in err
    with started(tmp_path, {}):
        kept = nubes.Dict.from_name("d").keys()
        assert kept[: acknowledged + 1] == list(range(acknowledged + 1))
        assert len(kept) <= acknowledged + 2
        assert nubes.Queue.from_name("q").iterate()[: acknowledged + 1] == list(range(acknowledged + 1))
        assert [d.name for d in nubes.Dict.objects.list()] == ["d"]
