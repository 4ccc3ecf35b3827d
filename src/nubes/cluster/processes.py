"""Keeps processes on this machine as declared: `python -m nubes.cluster.processes STORE.db`.

A process is found by the mark in its environment, whoever started it: nothing need be remembered. The command can be
killed and started again at any time; what runs goes on, and nothing is started twice for long.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import msgspec

from nubes.cluster.reconcile import Conflict, Deployments, Object, Store
from nubes.kernel.errors import NotFound

MARK = "NUBES_OBJECT"
LOOK_S = 0.02
GRACE_S = 5.0  # from being asked to end until being killed
RESTART_S = 1.0  # at least so long between two starts of one object


def observe(store: str) -> dict[str, list[int]]:
    """The processes that run for objects of that store, by the object's name, the oldest first."""
    mark = f"{MARK}={store}/".encode()
    found: dict[str, list[int]] = {}
    for pid in sorted(_pids()):
        try:
            if os.getsid(pid) != pid:  # what a process starts itself is its own affair
                continue
            with open(f"/proc/{pid}/environ", "rb") as file:
                marked = [part for part in file.read().split(b"\0") if part.startswith(mark)]
        except OSError:  # it has just ended, or is somebody else's
            continue
        if marked:
            found.setdefault(marked[0][len(mark) :].decode(), []).append(pid)
    return found


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


class Processes:
    """One running process for each `process` object, whose spec is `{"command": [...], "env": {...}}`."""

    def __init__(self) -> None:
        # All of it may be lost: it saves work and is no ground for decisions on what is to run.
        self.children: list[subprocess.Popen[bytes]] = []
        self.asked: dict[int, float] = {}  # pid -> when it was asked to end
        self.started: dict[str, float] = {}

    def reconcile(self, store: Store) -> int:
        self.children = [child for child in self.children if child.poll() is None]
        running = observe(store.id)  # first: what is declared afterwards is started, and never ended by mistake
        declared = {one.name: one for one in store.list("process")}
        now = time.monotonic()
        steps = 0
        for name, pids in running.items():
            for pid in pids[1:] if name in declared else pids:
                steps += self._end(pid, now)
        for name, one in declared.items():
            if name in running:
                steps += self._report(store, one, running[name][0])
            elif now - self.started.get(name, -RESTART_S) >= RESTART_S:
                self.started[name] = now
                self._start(store, one)
                steps += 1
        self.asked = {pid: at for pid, at in self.asked.items() if any(pid in pids for pids in running.values())}
        self.started = {name: at for name, at in self.started.items() if name in declared}
        return steps

    def _start(self, store: Store, one: Object) -> None:
        env = {**os.environ, **one.spec.get("env", {}), MARK: f"{store.id}/{one.name}"}
        child = subprocess.Popen(one.spec["command"], env=env, start_new_session=True, stdin=subprocess.DEVNULL)
        self.children.append(child)

    def _end(self, pid: int, now: float) -> int:
        at = self.asked.setdefault(pid, now)
        if at != now and now - at < GRACE_S:
            return 0
        try:
            os.killpg(pid, signal.SIGTERM if at == now else signal.SIGKILL)
        except ProcessLookupError:
            pass
        return 1

    def _report(self, store: Store, one: Object, pid: int) -> int:
        if one.status.get("pid") == pid:
            return 0
        try:
            store.update(msgspec.structs.replace(one, status={**one.status, "pid": pid}))
        except (Conflict, NotFound):
            pass  # seen at the next look
        return 1


def keep(path: str) -> None:
    """Keeps everything in the store as declared, until it is killed."""
    store = Store(path)
    controllers = (Deployments(), Processes())
    while True:
        if not sum([one.reconcile(store) for one in controllers]):
            time.sleep(LOOK_S)


if __name__ == "__main__":
    keep(sys.argv[1])
