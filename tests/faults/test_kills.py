"""Any process is killed at any moment: what was accepted is answered, and nobody waits for ever."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
from killable import until

from nubes import FunctionCall
from nubes import client as clients
from nubes.kernel.errors import CallFailed, InstanceDied, NubesError, Overloaded, Unavailable

STATES = ("folder", "servers")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_spawned_calls_survive_the_control_plane(plane, work, tmp_path):
    calls = [work.slow.spawn(str(tmp_path), n, 0.3) for n in range(20)]
    until(lambda: any(tmp_path.glob("[0-9]*")), what="a call began")
    instances = [i["pid"] for i in plane.status()["instances"]]
    plane.kill()
    until(lambda: not any(alive(pid) for pid in instances if pid), what="the instances went with their control plane")
    plane.start()
    assert [FunctionCall.from_id(call.object_id).get(timeout=30) for call in calls] == [n * n for n in range(20)]
    again = [FunctionCall.from_id(call.object_id).get(timeout=5) for call in calls]
    assert again == [n * n for n in range(20)], "the answer stays the same"
    assert {int(p.name) for p in tmp_path.glob("[0-9]*")} == set(range(20)), "each ran at least once"


def test_many_kills_at_random_moments(plane, work, tmp_path):
    chance = random.Random(7)
    calls = {}
    for round_ in range(4):
        for n in range(round_ * 10, round_ * 10 + 10):
            calls[n] = work.slow.spawn(str(tmp_path), n, 0.05).object_id
        time.sleep(chance.random() * 0.3)
        plane.kill()
        plane.start()
    for n, call in calls.items():
        assert FunctionCall.from_id(call).get(timeout=30) == n * n


def test_a_policy_of_one_function_survives_the_control_plane(plane, work):
    clients.connect().ask("set_policy", seam="balancing", policy="prequal", function="work/plus")

    def balanced():
        assert work.plus.remote(1) == 2
        return {f["name"]: f["balancing"] for f in plane.status()["functions"] if f["balancing"]}

    assert balanced() == {"work/plus": "prequal"}
    plane.kill()
    plane.start()
    assert balanced() == {"work/plus": "prequal"}


def test_a_waiting_client_is_told_that_the_control_plane_went_away(plane, work, tmp_path):
    caught = []

    def call():
        try:
            work.slow.remote(str(tmp_path), 1, 30)
        except NubesError as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    until(lambda: (tmp_path / "1").exists(), what="the call began")
    plane.kill()
    thread.join(timeout=5)
    assert isinstance(caught[0], Unavailable)
    assert "nubes up" in str(caught[0])
    plane.start()


def test_a_call_whose_instance_is_killed_gets_a_clear_error(plane, work, tmp_path):
    caught = []

    def call():
        try:
            work.slow.remote(str(tmp_path), 1, 30)
        except CallFailed as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    until(lambda: (tmp_path / "1").exists() and plane.status()["instances"][0]["state"] == "busy", what="the call runs")
    os.kill(plane.status()["instances"][0]["pid"], signal.SIGKILL)
    thread.join(timeout=5)
    assert isinstance(caught[0], InstanceDied)
    assert "SIGKILL" in str(caught[0])


def test_a_spawned_call_is_run_again_when_its_instance_dies(plane, work, tmp_path):
    assert work.die_once.spawn(str(tmp_path), 5).get(timeout=20) == 5
    assert (tmp_path / "5").read_text() == "xx"


def test_a_spawned_call_that_always_kills_its_instance_ends_in_an_error(plane, work):
    with pytest.raises(InstanceDied, match="code 3"):
        work.die_always.spawn(1).get(timeout=20)


@pytest.mark.parametrize("which", ["root", "function"])
def test_a_parent_in_the_tree_is_killed(plane, work, tmp_path, which):
    assert work.plus.remote(1) == 2
    until(lambda: all(p["ready"] and p["pid"] for p in plane.status()["parents"]), what="the tree has grown")
    parents = plane.status()["parents"]
    victim = next(p for p in parents if (p["parent"] == 0 if which == "root" else p["function"] == "work/slow"))
    calls = [work.slow.spawn(str(tmp_path), n, 0.3) for n in range(5)]
    until(lambda: len(list(tmp_path.glob("[0-9]*"))) == 5, what="all calls run")
    os.kill(victim["pid"], signal.SIGKILL)
    assert [call.get(timeout=20) for call in calls] == [n * n for n in range(5)]
    assert work.plus.remote(1) == 2
    fresh = work.slow.remote(str(tmp_path), 77, 0)
    assert fresh == 77 * 77


def test_a_full_queue_pushes_back(plane, work):
    calls = [work.narrow.spawn(1.0)]
    until(
        lambda: next(f for f in plane.status()["functions"] if f["name"] == "work/narrow")["busy"] == 1, what="one runs"
    )
    more = [work.narrow.spawn(0.0) for _ in range(5)]
    with pytest.raises(Overloaded, match="queue"):
        work.narrow.spawn(0.0)
    with pytest.raises(Overloaded):
        work.narrow.remote(0.0)
    assert [call.get(timeout=20) for call in calls + more] == [1.0] + [0.0] * 5


def test_a_fork_bomb_hurts_no_other(plane, work):
    assert work.plus.remote(1) == 2
    bomb = threading.Thread(target=lambda: pytest.raises(CallFailed, work.bomb.remote))
    bomb.start()
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        assert work.plus.remote(1) == 2
    bomb.join(timeout=10)
    assert not bomb.is_alive()


def test_large_arguments_go_on_after_a_client_let_go_of_its_connection(plane, work):
    """Its shared memory is taken away with its last connection, and is not used again as if it were there."""
    large = bytes(1 << 20)
    assert work.size.remote(large) == len(large)
    for _ in work.plus.map(range(100)):
        break
    assert work.size.remote(large) == len(large)


def test_large_arguments_go_on_after_the_control_plane_was_killed(plane, work):
    large = bytes(1 << 20)
    assert work.size.remote(large) == len(large)
    plane.kill()
    plane.start()
    assert work.size.remote(large) == len(large)
    assert list(work.size.map([large, large])) == [len(large)] * 2
