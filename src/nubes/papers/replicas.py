"""Live replicas for the reproductions: a function with a fixed number of instances, calls by the clock, and trouble."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from nubes.client import Client
from nubes.papers.context import Context
from nubes.papers.live import cloud, module, settle

CODE = """
import os, time, nubes
app = nubes.App("replicas")

@app.function(cpu=0.01, min_instances={instances}, max_instances={instances}, keep_alive="no-unload", {options})
@nubes.concurrent(max_inputs={concurrency})
def work(slow):
    until = time.thread_time() + {cpu_s}
    while time.thread_time() < until:
        pass
    try:
        with open(slow) as file:
            waits = file.read() == str(os.getpid())
    except FileNotFoundError:
        waits = False
    time.sleep({slow_s} if waits else {sleep_s})
    return os.getpid()
"""


@contextlib.contextmanager
def replicas(
    ctx: Context, name: str, options: str, instances: int, *, concurrency: int = 8, cpu_s: float = 0.0,
    sleep_s: float = 0.0, slow_s: float = 0.0,
) -> Iterator[tuple[Client, ModuleType, list[int]]]:  # fmt: skip
    """A cloud with `instances` of one function that are ready: (client, module, their processes).

    A call takes `cpu_s` of CPU and sleeps; `work(path)` sleeps longer in the process whose number is in the file.
    """
    text = CODE.format(
        instances=instances, options=options, concurrency=concurrency, cpu_s=cpu_s, sleep_s=sleep_s, slow_s=slow_s
    )
    folder = ctx.folder / name
    with cloud(folder) as client:
        made = module(ctx.folder / f"code-{name}", f"nubes_replicas_{abs(hash(name))}", text)
        with made.app.run():
            status = settle(client, lambda s: sum(i["state"] != "starting" for i in s["instances"]) == instances)
            yield client, made, [i["pid"] for i in status["instances"]]


def function(client: Client) -> dict[str, Any]:
    """What the control plane says of it."""
    found: dict[str, Any] = client.ask("status")["functions"][0]
    return found


@contextlib.contextmanager
def trouble(what: Callable[[threading.Event], None]) -> Iterator[None]:
    """Runs `what` in a thread until the block ends; it is told by the event."""
    over = threading.Event()
    thread = threading.Thread(target=what, args=(over,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def pauses(pids: list[int], draw: random.Random, pause_s: float, every_s: float) -> Callable[[threading.Event], None]:
    """Now and then stops one of the processes for a while."""

    def pause(over: threading.Event) -> None:
        while not over.wait(every_s * (0.5 + draw.random())):
            _held(draw.choice(pids), pause_s, over)

    return pause


def hog(
    pids: list[int], draw: random.Random, stay_s: float, held_s: float, left_s: float
) -> Callable[[threading.Event], None]:
    """Takes one process's core for `held_s` of every `held_s + left_s`, and moves on to another after `stay_s`."""

    def move(over: threading.Event) -> None:
        victim = draw.choice(pids)
        while not over.is_set():
            for _ in range(max(1, round(stay_s / (held_s + left_s)))):
                _held(victim, held_s, over)
                if over.wait(left_s):
                    return
            victim = draw.choice([pid for pid in pids if pid != victim])

    return move


def _held(pid: int, seconds: float, over: threading.Event) -> None:
    """Stops a process for so long."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        try:
            over.wait(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)
