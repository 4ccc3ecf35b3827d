"""A control plane on PostgreSQL: the server goes and comes back, another control plane takes over, readers."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from backends import Postgres
from killable import Plane, until

import nubes
from nubes import FunctionCall
from nubes import client as clients
from nubes.drivers.local import state as states
from nubes.functions import events as e
from nubes.kernel.errors import Unavailable
from nubes.kernel.message import Codec
from nubes.workloads.recording import events_of, load_recording


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server that the tests here may kill, if they start it again."""
    made = Postgres()
    yield made
    made.close()


@pytest.fixture
def url(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> str:
    url = server.new()
    monkeypatch.setenv("NUBES_DATABASE", url)
    return url


@pytest.fixture
def plane(url, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("NUBES_DATA", str(folder))
    clients.disconnect()
    plane = Plane(folder).start()
    yield plane
    plane.stop()


def more(found, count):
    """Waits until so many more have come."""
    before = len(found)
    until(lambda: len(found) >= before + count)


def test_the_server_is_killed_under_load_and_comes_back(server, plane, work, tmp_path):
    """Nothing that was accepted is lost, and nothing is there twice."""
    accepted, refused = {}, set()
    shared = nubes.Dict.from_name("shared", create_if_missing=True)
    shared["before"] = 1
    stop = threading.Event()

    def load(start):
        for n in range(start, 10_000, 2):
            if stop.is_set():
                return
            try:
                accepted[n] = work.slow.spawn(str(tmp_path), n, 0.0).object_id
            except Unavailable as error:
                assert "cannot be written" in str(error)
                refused.add(n)
                time.sleep(0.05)

    threads = [threading.Thread(target=load, args=(start,)) for start in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        more(accepted, 10)
        server.kill()
        more(refused, 1)
        assert work.plus.remote(1) == 2, "what needs no log goes on"
        assert "cannot be written" in plane.status()["full"]
        with pytest.raises(Unavailable, match="PostgreSQL at 127.0.0.1.* cannot be used"):
            shared["while"] = 2
        server.start()
    more(accepted, 10)
    stop.set()
    for thread in threads:
        thread.join()
    assert {n: FunctionCall.from_id(call).get(timeout=30) for n, call in accepted.items()} == {
        n: n * n for n in accepted
    }
    assert refused
    shared["after"] = 3
    assert shared.keys() == ["before", "after"]
    assert not plane.status()["full"]
    plane.kill()
    plane.start()
    assert all(FunctionCall.from_id(call).get(timeout=30) == n * n for n, call in accepted.items())
    submitted = [one.call for _, one in events_of(plane.folder) if isinstance(one, e.Submitted)]
    assert len(submitted) == len(set(submitted))


def test_both_are_killed(server, plane, work, tmp_path):
    calls = [work.slow.spawn(str(tmp_path), n, 0.2) for n in range(10)]
    server.kill()
    plane.kill()
    server.start()
    plane.start()
    assert [FunctionCall.from_id(call.object_id).get(timeout=30) for call in calls] == [n * n for n in range(10)]


def test_a_cloud_goes_on_in_another_folder(plane, work, tmp_path, monkeypatch):
    """As on another machine, when the first is lost: only the database is needed."""
    nubes.Secret.objects.create("kept", {"TOKEN": "hush"})
    calls = [work.slow.spawn(str(tmp_path), n, 0.2) for n in range(5)]
    plane.kill()
    clients.disconnect()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("NUBES_DATA", str(elsewhere))
    other = Plane(elsewhere).start()
    try:
        assert [FunctionCall.from_id(call.object_id).get(timeout=30) for call in calls] == [n * n for n in range(5)]
        assert [secret.name for secret in nubes.Secret.objects.list()] == ["kept"]
    finally:
        other.stop()


def started(folder: Path) -> subprocess.CompletedProcess[str]:
    """Tries to run a second control plane."""
    command = [sys.executable, "-m", "nubes.cli.main", "up", "--data", str(folder), "--port", "0"]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_two_control_planes_on_one_database(plane, tmp_path):
    second = started(tmp_path / "second")
    assert second.returncode != 0
    assert f"rocess {plane.process.pid} on " in second.stderr
    assert "already runs a control plane on PostgreSQL at 127.0.0.1" in second.stderr
    assert plane.status()["records"] > 0


def test_the_one_that_lost_its_place_ends_and_says_why(server, url, plane, work, tmp_path):
    """Its connection is cut for good; another takes over before it is back."""
    calls = [work.slow.spawn(str(tmp_path), n, 0.1) for n in range(5)]
    name = url.rpartition("/")[2]
    server.execute("postgres", f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    server.execute(name, "UPDATE nubes.writer SET epoch = epoch + 1")
    with pytest.raises((Unavailable, nubes.CallFailed)):
        for n in range(100):
            work.slow.spawn(str(tmp_path), n, 0.0)
    plane.process.wait(timeout=30)
    assert "another control plane has taken over" in plane.complaint()
    plane.start()
    assert [FunctionCall.from_id(call.object_id).get(timeout=30) for call in calls] == [n * n for n in range(5)]


def test_readers_of_the_log_find_it(plane, work):
    assert [work.plus.remote(n) for n in range(3)] == [1, 2, 3]
    until(lambda: sum(isinstance(one, e.Finished) for _, one in events_of(plane.folder)) == 3, what="they are recorded")
    assert load_recording(plane.folder).workload
    decode = Codec(e.EVENTS).decode
    assert any(isinstance(decode(record)[1], e.Deployed) for record in states.read(plane.folder / "log"))
    told = subprocess.run(
        [sys.executable, "-m", "nubes.cli.main", "app", "history", "work", "--json", "--data", str(plane.folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert json.loads(told.stdout)[0]["what"] == "deployed", told.stderr


def test_a_folder_and_a_database_are_not_mixed_up(plane, tmp_path, monkeypatch):
    plane.kill()
    monkeypatch.delenv("NUBES_DATABASE")
    without = started(plane.folder)
    assert "The state of " in without.stderr
    assert "is in PostgreSQL at 127.0.0.1" in without.stderr
    own = tmp_path / "own"
    states.open_state(own).log.close()
    with pytest.raises(nubes.UsageError, match="holds a log of its own"):
        states.open_state(own, "postgresql://nobody@127.0.0.1:1/none")


def test_a_server_that_is_not_there_is_named(tmp_path):
    for url in ("postgresql://me:hush@127.0.0.1:1/none", "postgresql://me:hush@127.0.0.1:1/none?sslmode=disable"):
        with pytest.raises(Unavailable, match="PostgreSQL at 127.0.0.1:1/none cannot be used: .*refused") as caught:
            states.open_state(tmp_path, url)
        assert "hush" not in str(caught.value)
