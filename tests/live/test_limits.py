"""Limits, and instances that crash, leak and bomb: nobody else is hurt."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import limits_app as app
import pytest
from real import status, until

import nubes

SLOW_STATES = ("ray",)


@pytest.fixture(scope="module", autouse=True)
def running(plane: Path) -> Iterator[None]:
    with app.app.run():
        yield


@pytest.fixture
def bystander() -> Iterator[None]:
    """A call that runs beside a test, in an instance that must be the same afterwards."""
    before = app.bystander.remote()
    call = app.bystander.spawn(0.5)
    yield
    assert call.get() == before
    assert app.bystander.remote() == before


def limits() -> str:
    return str(status()["limits"])


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False


def test_status_says_which_limits_hold() -> None:
    assert limits() in ("cgroup2", "cgroup1", "rlimit")


def test_memory(bystander: None) -> None:
    assert app.hold_memory.remote(16) == 16 << 20
    if limits() == "rlimit":
        with pytest.raises(MemoryError):
            app.hold_memory.remote(512)
    else:
        with pytest.raises(nubes.InstanceDied, match="more memory than its limit of 128 MiB"):
            app.hold_memory.remote(512)
    assert app.hold_memory.remote(16) == 16 << 20


def test_cpu(bystander: None) -> None:
    if limits() == "rlimit":
        pytest.skip("CPU is not limited here: no cgroup is writable")
    assert app.spin.remote(1.0) < 0.45


def test_a_fork_bomb(bystander: None) -> None:
    with pytest.raises(nubes.InstanceDied, match="more than the 512 an instance may have"):
        app.fork_bomb.remote()
    assert app.bystander.remote() > 0


@pytest.mark.parametrize("leaves_its_group", [False, True])
def test_children_go_with_their_instance(leaves_its_group: bool) -> None:
    if leaves_its_group and limits() == "rlimit":
        pytest.skip("children that leave their process group are not found here: no cgroup is writable")
    limited = {"memory": ("64MiB", "256MiB")} if leaves_its_group else {}
    other = nubes.App("orphans")
    raw = app.leave_a_child_behind.__nubes_raw__
    ends = other.function(name="ends", single_use=True, **limited)(raw)
    crashes = other.function(name="crashes", **limited)(raw)
    with other.run(), nubes.Queue.ephemeral() as pids:
        ends.remote(pids, leaves_its_group, False)
        with pytest.raises(nubes.InstanceDied):
            crashes.remote(pids, leaves_its_group, True)
        left = pids.get_many(2)
        assert len(left) == 2
        until(lambda: not [pid for pid in left if alive(pid)])


def test_crashes_are_told_apart(bystander: None) -> None:
    with pytest.raises(nubes.InstanceDied, match="exited with code 3"):
        app.exit_now.remote(3)
    with pytest.raises(nubes.InstanceDied, match="ended by SIGSEGV"):
        app.segfault.remote()
    with pytest.raises(nubes.InstanceDied, match="ended by SIGKILL"):
        app.kill_itself.remote()
    with pytest.raises(nubes.InstanceDied, match="exited with code 0"):
        app.exit_now.remote(0)


def test_a_crash_is_one_calls_error_in_a_map(bystander: None) -> None:
    results = list(app.exit_now.map([1, 2, 3], return_exceptions=True))
    assert [type(r) for r in results] == [nubes.InstanceDied] * 3


def test_a_leak_of_descriptors(bystander: None) -> None:
    assert "Too many open files" in app.open_many.remote()


def test_nothing_is_left_of_a_control_plane_that_is_killed(tmp_path: Path, one_machine: None) -> None:
    from real import script

    process = script(
        "import os; os.environ['NUBES_DATA'] = sys.argv[1]\n"
        "import limits_app as a, nubes\n"
        "a.app.deployment.hold()\n"
        "s = nubes.client.connect().ask('status')\n"
        "c = a.bystander.spawn(600); pid = a.bystander.remote()\n"
        "s = nubes.client.connect().ask('status')\n"
        "pids = [one['pid'] for one in s['instances'] + s['parents'] if one['pid']]\n"
        "print(s['pid'], *pids, flush=True)\n"
        "os.kill(s['pid'], 9); sys.stdin.read()\n",
        str(tmp_path / "data"),
        stdin=-1,
    )
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) >= 3
    until(lambda: not [pid for pid in pids if alive(pid)])
    process.communicate("", timeout=20)


def test_nothing_is_left_when_the_client_of_an_embedded_cloud_is_killed(tmp_path: Path, one_machine: None) -> None:
    from real import script

    process = script(
        "import os; os.environ['NUBES_DATA'] = sys.argv[1]\n"
        "import limits_app as a, nubes\n"
        "a.app.deployment.hold()\n"
        "pid = a.bystander.remote(); print(nubes.client.connect().pid, pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n",
        str(tmp_path / "data"),
    )
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    until(lambda: not [pid for pid in pids if alive(pid)])
    assert process.wait(20) == -9
    end = time.monotonic() + 5
    while time.monotonic() < end and (tmp_path / "data" / "socket").exists():
        time.sleep(0.05)
    assert not (tmp_path / "data" / "socket").exists()
    assert os.path.isdir(tmp_path / "data" / "log")
