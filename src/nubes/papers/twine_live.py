"""A quorum service of three processes that is updated while its hosts are maintained, with TaskControl or without."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from random import Random

from nubes.cluster.seams import Operation, TaskView
from nubes.cluster.task_control import Completed, Execute, Requested, TaskChanged, TaskControl
from nubes.kernel.message import Event

REPLICAS, QUORUM = 3, 2
WORK_S = 0.25  # that an update or the maintenance of a host takes, the replica being down
SAMPLE_S = 0.005
PATIENCE_S = 30.0

# Whoever can connect finds it up: the kernel answers, however busy the machine is.
REPLICA = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen(64)
while True:
    s.accept()[0].close()
"""


class Service:
    """Three replicas, each on a host of its own, and whether they are up."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.paths = [os.path.relpath(folder / str(i)) for i in range(REPLICAS)]
        self.processes: list[subprocess.Popen[bytes] | None] = [None] * REPLICAS
        self.locks = [threading.Lock() for _ in range(REPLICAS)]
        for i in range(REPLICAS):
            self.start(i)
        for i in range(REPLICAS):
            self.wait(i)

    def start(self, i: int) -> None:
        self.processes[i] = subprocess.Popen([sys.executable, "-S", "-c", REPLICA, self.paths[i]])

    def stop(self, i: int) -> None:
        process = self.processes[i]
        if process is not None:
            os.unlink(self.paths[i])
            process.send_signal(signal.SIGKILL)
            process.wait()

    def up(self, i: int) -> bool:
        with socket.socket(socket.AF_UNIX) as s:
            try:
                s.connect(self.paths[i])
            except OSError:
                return False
        return True

    def wait(self, i: int) -> None:
        until = time.monotonic() + PATIENCE_S
        while not self.up(i) and time.monotonic() < until:
            time.sleep(SAMPLE_S)

    def disturb(self, i: int) -> None:
        """What every operation does: take the replica down, work on it or its host, and bring it up again."""
        with self.locks[i]:
            self.stop(i)
            time.sleep(WORK_S)
            self.start(i)
            self.wait(i)

    def close(self) -> None:
        for i in range(REPLICAS):
            self.stop(i)


def measured(folder: Path, policy: str, draw: Random) -> tuple[float, float]:
    """(share of samples with a quorum, seconds until all is done); `policy` "": nobody asks the service.

    A rolling update, one replica after the other, and the maintenance of two hosts, begun at random times within it.
    """
    service = Service(folder)
    maintenance = sorted((draw.uniform(0.0, REPLICAS * WORK_S), i) for i in draw.sample(range(REPLICAS), 2))
    good, done = [], threading.Event()

    def watch() -> None:
        while not done.is_set():
            good.append(sum(map(service.up, range(REPLICAS))) >= QUORUM)
            time.sleep(SAMPLE_S)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        begun = time.monotonic()
        (asking(service, policy, maintenance) if policy else regardless(service, maintenance))
        took = time.monotonic() - begun
    finally:
        done.set()
        watcher.join()
        service.close()
    return sum(good) / len(good), took


def regardless(service: Service, maintenance: list[tuple[float, int]]) -> None:
    """The update waits for each replica before the next one, but not for the hosts, nor the hosts for the update."""

    def maintain(at_s: float, i: int) -> None:
        time.sleep(at_s)
        service.disturb(i)

    threads = [threading.Thread(target=maintain, args=one) for one in maintenance]
    for thread in threads:
        thread.start()
    for i in range(REPLICAS):
        service.disturb(i)
    for thread in threads:
        thread.join()


def asking(service: Service, policy: str, maintenance: list[tuple[float, int]]) -> None:
    """The same operations, each when TaskControl says so."""
    control = TaskControl(policy, [TaskView(str(i), leader=i == 0) for i in range(REPLICAS)])
    events: queue.Queue[Event] = queue.Queue()
    begun = time.monotonic()

    def execute(operation: Operation) -> None:
        i = int(operation.task)
        service.disturb(i)
        events.put(TaskChanged(TaskView(operation.task, service.up(i), i == 0)))
        events.put(Completed(operation.id))

    def ask(number: int, at_s: float, i: int) -> None:
        time.sleep(at_s)
        events.put(Requested((Operation(number, "maintenance", str(i)),)))

    threads = [threading.Thread(target=ask, args=(10 + n, *one)) for n, one in enumerate(maintenance)]
    for thread in threads:
        thread.start()
    events.put(Requested(tuple(Operation(i, "update", str(i)) for i in range(REPLICAS))))
    left = REPLICAS + len(maintenance)
    while left:
        event = events.get(timeout=PATIENCE_S)
        left -= isinstance(event, Completed)
        for command in control.handle(event, time.monotonic() - begun):
            if isinstance(command, Execute):
                threads.append(threading.Thread(target=execute, args=(command.operation,)))
                threads[-1].start()
    for thread in threads:
        thread.join()
