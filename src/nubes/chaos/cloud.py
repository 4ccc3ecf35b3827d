"""A cloud to be broken: a control plane, agents and clients, in a folder of their own."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nubes.chaos import members
from nubes.chaos.members import Member
from nubes.chaos.network import Network, namespaces_work
from nubes.chaos.preload import Preload
from nubes.client import Client
from nubes.drivers.remote.site import groups_of
from nubes.kernel.errors import NubesError

START_S = 60.0


@dataclass(frozen=True)
class Plan:
    """What is started. `database` and `objects` are as for `nubes up`; a disk of 0 bytes is not one of its own."""

    machines: int = 0
    clients: int = 3
    seed: int = 0
    database: str = ""
    objects: str = ""
    disk_bytes: int = 1 << 30
    entry: str = "nubes.cli.main"  # what the control plane is


class Cloud:
    """`folder` must be new. `close` ends everything, and takes the disk and the networks away."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.data = folder / "data"
        self.run = os.urandom(6).hex()
        for name in ("data", "app", "ledger", "journals", "out"):
            (folder / name).mkdir(parents=True)
        self.disk = plan.disk_bytes > 0 and os.geteuid() == 0 and _mounted(self.data, plan.disk_bytes)
        shutil.copy(Path(__file__).with_name("app.py"), folder / "app" / "chaos_app.py")
        self.preload = Preload(folder)
        self.port = _free_port()
        self.isolated = plan.machines > 0 and namespaces_work()
        self.networks: list[Network] = []
        self.shared: set[str] = set()
        self.trouble: list[str] = []  # processes that ended though nobody ended them
        self.plane = Member("the control plane", self._up, {**self._env(), **self.preload.env}, self._out("plane"))
        self.agents: list[Member] = []
        self.clients: list[Member] = []

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Raises `NubesError` if the control plane or its machines do not come up."""
        self.plane.start()
        self._until(lambda: (self.data / "socket").exists() and self.ask("status"), "the control plane did not start")
        self.deploy()
        for number in range(1, self.plan.machines + 1):
            network = Network(number, self.port, self.isolated)
            self.networks.append(network)
            self.agents.append(self._agent(number, network))
            self.agents[-1].start()
        there = self.plan.machines + 1
        self._until(lambda: len(self.ask("status")["machines"]) == there, "the machines did not join")
        for number in range(1, self.plan.clients + 1):
            self.clients.append(self._client(number))
            self.clients[-1].start()

    def deploy(self) -> None:
        argv = [sys.executable, "-m", "nubes.cli.main", "deploy", str(self.folder / "app" / "chaos_app.py")]
        done = subprocess.run(argv, env=self._env(), cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NubesError(f"The app of the clients could not be deployed: {done.stderr.strip()}")

    def watch(self) -> None:
        """Starts again whatever ended, and notes what ended though nobody ended it."""
        for member in (self.plane, *self.agents, *self.clients):
            told = member.watch()
            if told and not (member is self.plane and self._no_room()):
                self.trouble.append(told)

    def look(self) -> None:
        """Notes which folders in shared memory are those of this run."""
        self.shared |= members.shared_folders([m.pid for m in (self.plane, *self.agents) if m.pid])

    def processes(self) -> tuple[list[int], list[int]]:
        """(instances that ran a call, all other processes below the control plane and agents), in order."""
        own = {m.pid for m in (self.plane, *self.agents, *self.clients)}
        below = [pid for pid in sorted(members.marked(self.run)) if pid not in own and pid != os.getpid()]
        instances = [pid for pid in below if (self.folder / "ledger" / f"{pid}.runs").exists()]
        return instances, [pid for pid in below if pid not in instances]

    def stop_clients(self, within_s: float) -> list[str]:
        """Has all clients finish what they are at; those that did not."""
        for client in self.clients:
            client.wanted = False
            if client.pid:
                members.signalled(client.pid, signal.SIGTERM)
        end = time.monotonic() + within_s
        return [
            f"{client.role} still waited for an answer {within_s:g} s after the last fault"
            for client in self.clients
            if not client.end(max(0.1, end - time.monotonic()))
        ]

    def shut_down(self) -> list[str]:
        """Ends agents and control plane in order; what did not end when asked."""
        self.look()
        late = [f"{m.role} did not end when asked to" for m in (*self.agents, self.plane) if not m.end(30.0)]
        time.sleep(0.5)
        return late

    def left_over(self) -> list[str]:
        """What is still there of it, after it was shut down."""
        own = hashlib.sha256(str(self.data.resolve()).encode()).hexdigest()[:12]
        agents = [groups_of(self.folder / "machines" / str(n) / "agent") for n in range(1, self.plan.machines + 1)]
        return members.left_over(self.run, self.shared, {f"nubes-{own}", *agents})

    def close(self, keep: bool = False) -> None:
        """With `keep`, a log that was on a disk of its own is copied to the folder."""
        for member in (*self.clients, *self.agents, self.plane):
            member.wanted = False
            if member.pid:
                members.signalled(member.pid, signal.SIGKILL)
                if member.process is not None:
                    member.process.wait()
        for pid in members.marked(self.run):
            members.signalled(pid, signal.SIGKILL)
        for network in self.networks:
            network.close()
        if self.disk:
            if keep and (self.data / "log").exists():
                shutil.copytree(self.data / "log", self.folder / "log")
            subprocess.run(["umount", "-l", str(self.data)], check=False)
            self.disk = False

    # -- parts ---------------------------------------------------------------------------------------------------

    def ask(self, name: str) -> Any:
        client = Client(str(self.data / "socket"))
        try:
            return client.ask(name)
        finally:
            client.close()

    def settle(self, within_s: float) -> list[str]:
        """Has every accepted call fetched once more, each within so long; what went wrong."""
        argv = [sys.executable, "-m", "nubes.chaos.settle", str(self.folder), str(within_s)]
        with self._out("settle").open("wb") as out:
            look = subprocess.Popen(argv, env=self._env(), stdout=out, stderr=out)
        written = self.folder / "journals" / "last.jsonl"
        seen, since = -1, time.monotonic()
        while look.poll() is None:
            size = written.stat().st_size if written.exists() else 0
            if size != seen:
                seen, since = size, time.monotonic()
            elif time.monotonic() - since > within_s * 2 + 60:
                look.kill()
                look.wait()
                return ["the last look at all answers did not come to an end"]
            time.sleep(0.1)
        if look.returncode:
            return [f"the last look at all answers failed: {self._out('settle').read_text().strip()}"]
        return []

    def _env(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("NUBES_")}
        return {
            **kept, members.MARK: self.run, "NUBES_DATA": str(self.data), "NUBES_SOCKET": str(self.data / "socket"),
        }  # fmt: skip

    def _up(self) -> list[str]:
        argv = [sys.executable, "-m", self.plan.entry, "up", "--data", str(self.data), "--port", "0"]
        argv += ["--agents", f"127.0.0.1:{self.port}"] if self.plan.machines else []
        argv += ["--database", self.plan.database] if self.plan.database else []
        return argv + (["--objects", self.plan.objects] if self.plan.objects else [])

    def _agent(self, number: int, network: Network) -> Member:
        name, place = f"m{number}", self.folder / "machines" / str(number)
        words = ["join", network.address, "--name", name, "--token", str(self.data / "token"), "--data", str(place)]
        argv = network.inside([sys.executable, "-m", "nubes.cli.main", *words, "--cpu", "2", "--memory", "2GiB"])
        return Member(f"agent {name}", lambda: argv, {**self._env(), **self.preload.env}, self._out(name))

    def _client(self, number: int) -> Member:
        def argv() -> list[str]:
            name = f"c{number}.{member.starts}"
            return [sys.executable, "-m", "nubes.chaos.load", str(self.folder), name, str(self.plan.seed)]

        member = Member(f"client c{number}", argv, self._env(), self._out(f"c{number}"))
        return member

    def _out(self, name: str) -> Path:
        return self.folder / "out" / f"{name}.log"

    def _no_room(self) -> bool:
        return "No space left" in self.plane.last_words()

    def _until(self, condition: Callable[[], Any], what: str) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            self.watch()
            try:
                if condition():
                    return
            except (NubesError, OSError):
                pass
            time.sleep(0.05)
        raise NubesError(f"In {START_S:g} s {what}: {self.plane.last_words()}")


def _mounted(folder: Path, size_bytes: int) -> bool:
    argv = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "nubes-chaos", str(folder)]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port
