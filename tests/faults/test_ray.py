"""Nodes of a Ray cluster come and go while work runs: nothing that was accepted is lost."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from backends import ray_cluster
from killable import until

from nubes import FunctionCall
from nubes import client as clients


@pytest.fixture(scope="module")
def cluster():
    with ray_cluster(1) as made:
        yield made


@pytest.fixture
def state(cluster):
    return lambda: {"NUBES_ON": "ray", "NUBES_ADDRESS": cluster.address}


def ask(question, **arguments):
    return clients.connect(start=False).ask(question, **arguments)


def machines():
    return {m["name"]: m for m in ask("status")["machines"]}


def busy():
    return [i for i in ask("status")["instances"] if i["calls"]]


def test_nodes_join_and_leave_while_work_runs(plane, work, cluster, tmp_path):
    (first,) = machines()
    calls = [work.slow.spawn(str(tmp_path), n, 0.3) for n in range(20)]
    node = cluster.add_node(num_cpus=2, object_store_memory=100 << 20)
    until(lambda: len(machines()) == 2, 30, "the new node is a machine")
    (second,) = set(machines()) - {first}
    more = [work.where.spawn(1.0) for _ in range(12)]
    until(lambda: machines()[second]["instances"] > 0, 20, "work goes there, too")
    assert work.double.remote(np.ones(500_000)).sum() == 1_000_000
    cluster.remove_node(node, allow_graceful=False)  # without notice
    until(lambda: second not in machines(), 30, "it is given up")
    assert [call.get(timeout=60) for call in calls] == [n * n for n in range(20)]
    assert all("nubes-agent" in call.get(timeout=60) for call in more)


@pytest.mark.slow
def test_a_node_that_is_drained_gets_nothing_new(plane, work, cluster, tmp_path):
    (first,) = machines()
    calls = [work.slow.spawn(str(tmp_path), n, 0.5) for n in range(4)]
    until(busy, 20, "calls run")
    ask("drain", machine=machines()[first]["id"], undo=False)
    late = work.plus.spawn(1)
    until(lambda: not busy(), 20, "what ran has ended")
    ask("drain", machine=machines()[first]["id"], undo=True)
    assert late.get(timeout=30) == 2
    assert [call.get(timeout=30) for call in calls] == [n * n for n in range(4)]


@pytest.mark.slow
def test_an_agent_that_is_killed_comes_back(plane, work, tmp_path):
    calls = [work.slow.spawn(str(tmp_path), n, 0.5) for n in range(6)]
    until(busy, 20, "calls run")
    before = {m["id"] for m in machines().values()}
    for process in agents():
        os.kill(process, signal.SIGKILL)
    assert [call.get(timeout=60) for call in calls] == [n * n for n in range(6)]
    assert not before & {m["id"] for m in machines().values()}


def test_the_control_plane_is_killed_and_comes_back(plane, work, tmp_path):
    calls = [work.slow.spawn(str(tmp_path), n, 0.5) for n in range(6)]
    until(busy, 20, "calls run")
    plane.kill()
    clients.disconnect()
    plane.start()
    assert [FunctionCall.from_id(call.object_id).get(timeout=60) for call in calls] == [n * n for n in range(6)]


def agents():
    """The processes that agents live in."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline") as file:
                    if file.read().startswith("ray::Host"):
                        found.append(int(name))
            except OSError:
                pass
    return found
