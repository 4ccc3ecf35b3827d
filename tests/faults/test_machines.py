"""Machines join, leave, stop, lose their connection and die: what was accepted is answered."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from killable import until
from proxy import Proxy

import nubes
from nubes import FunctionCall
from nubes import client as clients
from nubes.drivers.local.shared_folder import MEMORY
from nubes.drivers.remote import messages
from nubes.kernel.errors import NubesError


class Machine:
    """An agent in a process of its own."""

    def __init__(self, plane, folder, name, port, token=None, prefix=(), cpu=4):
        self.name = name
        self.folder = folder / name
        token = token or (plane.folder / "token").read_text().strip()
        words = ["-m", "nubes.cli.main", "join", f"127.0.0.1:{port}", "--data", str(self.folder), "--name", name]
        argv = [*prefix, sys.executable, *words, "--cpu", str(cpu), "--memory", "4GiB"]
        env = {**os.environ, "NUBES_TOKEN": token}
        self.process = subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def send(self, number):
        self.process.send_signal(number)

    def close(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def state():
    """The port is chosen here, so that agents find a control plane that comes back."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return lambda: {"NUBES_AGENTS": f"127.0.0.1:{port}"}


@pytest.fixture
def port(plane):
    return int((plane.folder / "agents").read_text())


@pytest.fixture
def join(plane, port, tmp_path):
    """Lets machines join, all work on them and none on the control plane's own."""
    made = []

    def one(name, through=port, **more):
        machine = Machine(plane, tmp_path, name, through, **more)
        made.append(machine)
        until(lambda: named(name), 20, f"{name} joined")
        ask("drain", machine=0, undo=False)
        return machine

    yield one
    for machine in made:
        machine.close()


def ask(question, **arguments):
    return clients.connect(start=False).ask(question, **arguments)


def named(name):
    return next((m for m in ask("status")["machines"] if m["name"] == name), None)


def running():
    return [i for i in ask("status")["instances"] if i["calls"]]


def test_calls_spread_over_machines_with_their_data(plane, work, join):
    join("one", cpu=1), join("two", cpu=1)
    array = np.arange(500_000.0)
    assert work.double.remote(array)[-1] == 2 * array[-1]
    calls = [work.double.spawn(array + n) for n in range(4)]
    assert [call.get(timeout=30)[0] for call in calls] == [0.0, 2.0, 4.0, 6.0]
    assert set(work.where.map([0.3] * 16)) == {
        str(plane.folder.parent / n / "agent" / "socket") for n in ("one", "two")
    }
    assert list(work.count.remote_gen(5)) == [0, 1, 2, 3, 4]
    assert work.nested.remote(array[:200_000]) == pytest.approx(2 * array[:200_000].sum())


@pytest.fixture
def segments():
    """What lies in the shared memory of clouds and agents that are newer than this."""
    before = set(MEMORY.glob("nubes-*"))
    return lambda: [path for folder in set(MEMORY.glob("nubes-*")) - before for path in folder.glob("seg-*")]


def test_what_a_step_gives_stays_for_the_next_one_where_it_lies(segments, plane, work, join):
    join("one", cpu=1), join("two", cpu=1)
    for _ in range(3):
        answers = list(work.make.then(work.measured).map([2] * 4))
        assert {size for size, _ in answers} == {2 << 20}
    assert all(there for _, there in answers), "each was measured where it was made"
    until(lambda: not segments(), 5, "nothing is left of them")


def test_what_a_step_gave_is_fetched_if_the_next_one_runs_elsewhere(segments, plane, work, join):
    join("one", cpu=1), join("two", cpu=4)
    ask("drain", machine=named("two")["id"])
    assert work.make.then(work.measured).remote(2) == (2 << 20, True)
    ask("drain", machine=named("two")["id"], undo=True)
    assert work.make.then(work.measured_elsewhere).remote(2) == (2 << 20, False)
    assert list(work.make.then(work.measured_elsewhere).map([2] * 4)) == [(2 << 20, False)] * 4
    until(lambda: not segments(), 5, "nothing is left of them")


@pytest.fixture
def between(segments, plane, work, join):
    """A call between two steps: what the first gave stayed on a machine, the second waits for CPU on another."""
    one = join("one", cpu=1)
    join("two", cpu=2)
    occupied = work.occupy.spawn(3.0)
    until(running, 20, "the second machine has no CPU left")
    with ThreadPoolExecutor() as threads:
        call = threads.submit(work.make.then(work.measured_elsewhere).remote, 2)
        until(lambda: any(f["name"] == "work/measured_elsewhere" and f["queued"] for f in ask("status")["functions"]))
        yield one, call
    occupied.get(timeout=20)


def test_what_stayed_on_a_machine_that_leaves_comes_along(segments, between):
    one, call = between
    one.send(signal.SIGTERM)
    assert one.process.wait(20) == 0
    assert call.result(timeout=30) == (2 << 20, False)
    until(lambda: not segments(), 5, "nothing is left of it")


@pytest.mark.slow
def test_a_call_whose_input_was_lost_between_two_steps_says_so(between):
    one, call = between
    one.send(signal.SIGKILL)
    with pytest.raises(nubes.Unavailable, match="lost with its machine"):
        call.result(timeout=30)


def test_what_ran_on_a_machine_that_died_goes_on_elsewhere(plane, work, join, tmp_path):
    one = join("one")
    calls = [work.slow.spawn(str(tmp_path), n, 1.0) for n in range(4)]
    until(running, 20, "calls run")
    join("two")
    one.send(signal.SIGKILL)
    assert [call.get(timeout=40) for call in calls] == [n * n for n in range(4)]
    until(lambda: named("one") is None, 15, "the machine is given up")


@pytest.mark.slow
def test_a_machine_that_stopped_is_given_up_and_comes_back_as_a_new_one(plane, work, join, tmp_path):
    one = join("one")
    before = named("one")["id"]
    calls = [work.slow.spawn(str(tmp_path), n, 3.0) for n in range(2)]
    until(running, 20, "calls run")
    join("two")
    one.send(signal.SIGSTOP)
    until(lambda: named("one") is None, messages.LOST_S + 5, "the machine is given up")
    one.send(signal.SIGCONT)
    assert [call.get(timeout=40) for call in calls] == [n * n for n in range(2)]
    until(lambda: named("one") is not None, 20, "it is back")
    assert named("one")["id"] != before


def test_a_connection_that_breaks_for_a_moment_disturbs_nobody(plane, work, join, port, tmp_path):
    proxy = Proxy(port)
    join("one", proxy.port)
    before = named("one")["id"]
    calls = [work.slow.spawn(str(tmp_path), n, 0.5) for n in range(8)]
    for _ in range(4):
        time.sleep(0.2)
        proxy.cut()
        time.sleep(0.2)
        proxy.mend()
    assert [call.get(timeout=30) for call in calls] == [n * n for n in range(8)]
    assert named("one")["id"] == before
    assert proxy.passed >= 2  # it came back at least once
    assert all((tmp_path / str(n)).read_text() == "x" for n in range(8)), "each ran once"
    proxy.close()


@pytest.mark.slow
def test_a_machine_out_of_reach_ends_what_it_runs_before_it_is_given_up(plane, work, join, port, tmp_path):
    proxy = Proxy(port)
    join("one", proxy.port)
    call = work.slow.spawn(str(tmp_path), 7, 60.0)
    until(running, 20, "it runs")
    (pid,) = [i["pid"] for i in running()]
    proxy.stall()
    until(lambda: not os.path.exists(f"/proc/{pid}"), messages.LEASE_S + 4, "its instance ended")
    assert named("one"), "it is not given up before"
    until(lambda: named("one") is None, messages.LOST_S + 5, "the machine is given up")
    assert [c["state"] for c in ask("status")["calls"]] == ["PENDING"], "the call waits for another machine"
    call.cancel()
    proxy.close()


def test_agents_find_a_control_plane_that_was_killed_and_came_back(plane, work, join, tmp_path):
    join("one")
    calls = [work.slow.spawn(str(tmp_path), n, 0.5) for n in range(10)]
    until(running, 20, "calls run")
    plane.kill()
    clients.disconnect()
    plane.start()
    ask("drain", machine=0, undo=False)
    assert [FunctionCall.from_id(call.object_id).get(timeout=40) for call in calls] == [n * n for n in range(10)]
    assert named("one")


def test_a_machine_that_leaves_finishes_what_it_runs(plane, work, join, tmp_path):
    one = join("one")
    calls = [work.slow.spawn(str(tmp_path), n, 1.0) for n in range(3)]
    until(lambda: len(running()) == 3, 20, "all run")
    one.send(signal.SIGTERM)
    assert one.process.wait(20) == 0
    until(lambda: named("one") is None, 5, "it is gone")
    assert [call.get(timeout=20) for call in calls] == [n * n for n in range(3)]
    assert all((tmp_path / str(n)).read_text() == "x" for n in range(3)), "each ran once"


def test_a_drain_waits_until_what_must_stay_up_is_up_elsewhere(plane, join):
    kept = nubes.App("kept")

    @kept.function(min_instances=2, disruption="quorum(up=2)", serialized=True)
    def one():
        return 1

    def up(machine):
        known = ask("status")["instances"]
        return sum(i["function"] == "kept/one" and i["state"] != "starting" and i["machine"] == machine for i in known)

    first = join("one", cpu=1) and named("one")["id"]
    kept.deploy()
    until(lambda: up(first) == 2, 20, "two are up")
    ask("drain", machine=first)
    assert named("one")["kept_by"] == ["kept/one"]
    second = join("two", cpu=1) and named("two")["id"]
    until(lambda: named("one")["instances"] == 0, 20, "it is drained")
    assert up(second) == 2
    assert one.remote() == 1
    ask("drain", machine=second, within_s=1.0)  # nobody can take its place, and the deadline comes
    until(lambda: named("two")["instances"] == 0, 20, "it is drained")


def test_who_does_not_know_the_token_is_told_so(plane, tmp_path, port):
    machine = Machine(plane, tmp_path, "stranger", port, token="guessed")
    _, said = machine.process.communicate(timeout=20)
    assert machine.process.returncode == 2
    assert "The token is not that of this control plane." in said
    assert "token" in said.splitlines()[-1]
    assert not named("stranger")


def test_two_agents_cannot_share_a_folder(plane, join, tmp_path, port):
    join("one")
    other = Machine(plane, tmp_path, "one", port)
    _, said = other.process.communicate(timeout=20)
    assert other.process.returncode != 0
    assert "already" in said
    assert named("one")["connected"]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs a mount namespace of its own")
def test_code_that_is_not_on_a_machine_comes_to_it(plane, work, join, tmp_path):
    apps = os.path.dirname(work.__file__)
    hidden = f'mount -t tmpfs none {apps} && exec "$@"'
    join("elsewhere", prefix=("unshare", "--mount", "sh", "-c", hidden, "sh"))
    assert work.slow.remote(str(tmp_path), 5, 0.0) == 25
    assert work.beside.remote() == "from the module beside"


def test_one_that_is_too_large_for_all_machines_is_told_so(plane, work, join):
    join("one", cpu=1)
    app = nubes.App("large")
    huge = app.function(cpu=999.0, serialized=True, name="huge")(lambda n: n)
    with app.run(), pytest.raises(NubesError, match="the largest of 2 machines has"):
        huge.remote(1)
