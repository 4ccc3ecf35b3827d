"""Borg, Omega, Kubernetes: a controller that is killed anywhere goes on from observation; a command queue does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from random import Random

from nubes.cluster.processes import observe
from nubes.cluster.reconcile import Store
from nubes.kernel.policy import Paper
from nubes.kernel.rng import rng
from nubes.papers import Claim, Context, Result, above, at_least, at_most, reproduction
from nubes.papers.edge_triggered import queue

PAPER = Paper(
    "borg-omega-kubernetes",
    "Declarative reconciling control plane",
    "Borg, Omega, and Kubernetes: Lessons learned from three container-management systems over a decade",
    "ACM Queue 2016",
)
KILLS, DEPLOYMENTS, MOST = 50, 20, 4
WINDOW_S = 0.4  # in which the kill comes, from the controller's start
SETTLED_S = 20.0  # how long the state may take to become as declared
WRITES = 300  # of each of two writers
COMMAND = ["sleep", "1000"]

QUEUE = "commands in a durable queue, each taken and done once"
EQUAL = Claim(
    "After a crash anywhere the running processes become those declared.",
    f"share of {KILLS} kills after which, the controller started again, each deployment runs what it declares",
    QUEUE,
    at_least(1.0),
    "restarts from observation alone, with nothing to replay",
)
ORPHANS = Claim(
    "And none runs that belongs to nothing.",
    f"processes without a declared object, after each of {KILLS} kills, together",
    QUEUE,
    at_most(0.0),
)
QUEUED = Claim(
    "A command queue loses actions, or loses what it did.",
    f"processes too many or too few after {KILLS} kills and with an empty queue, beyond those before, together",
    "-",
    above(0.0),
)
COUNTED = Claim(
    "Two controllers that write one object lose no update.",
    "updates that are there in the end / made",
    "reading and writing without a version",
    at_least(1.0),
)
RETRIED = Claim(
    "As conflicts are seen and tried again.",
    f"conflicts of two writers of {WRITES} updates each",
    "reading and writing without a version: none is seen",
    above(0.0),
)

WRITER = """
import sys, time
import msgspec
from nubes.cluster.reconcile import Store
store = Store(sys.argv[1])
while time.time() < float(sys.argv[2]):
    pass
tries = 0
for _ in range(int(sys.argv[3])):
    def edit(one):
        time.sleep(0.001)  # what takes no thought has few conflicts
        return msgspec.structs.replace(one, status={"count": one.status.get("count", 0) + 1})
    tries += store.change("counter", "one", edit)[1]
print(tries)
"""


@reproduction(PAPER, claims=(EQUAL, ORPHANS, QUEUED, COUNTED, RETRIED), area="cluster", seam="controller", mode="live")
def run(ctx: Context) -> Iterator[Result]:
    """Kills of a live controller, of the queue it is compared with, and two writers at once."""
    about = f"{DEPLOYMENTS} deployments of 0 to {MOST} processes, declared anew before each kill -9, which comes "
    about += f"0 to {WINDOW_S:g} s after the controller's start"
    ours = [declared(ctx, seed) for seed in ctx.each("killing the controller")]
    for claim, values in zip((EQUAL, ORPHANS), zip(*ours, strict=True), strict=True):
        yield ctx.result(claim, values, about)
    yield ctx.result(QUEUED, [commanded(ctx, seed) for seed in ctx.each("killing the queue's worker")], about)
    both = [written(ctx, seed) for seed in ctx.each("two writers")]
    about = f"two processes, {WRITES} increments each of one object's status"
    for claim, values in zip((COUNTED, RETRIED), zip(*both, strict=True), strict=True):
        yield ctx.result(claim, values, about)


def declared(ctx: Context, seed: int) -> tuple[float, float]:
    """(share of kills after which all was as declared, orphans)."""
    path = ctx.folder / f"declared-{seed}.db"
    store, draw = Store(path), rng(seed, "reconcile")
    wanted: dict[str, int] = {}

    def declare() -> None:
        for name, replicas in scaled(draw).items():
            wanted[name] = replicas
            template = {"spec": {"command": COMMAND}}
            spec = {"replicas": replicas, "selector": {"app": name}, "template": template}
            store.apply("deployment", name, spec)

    def right() -> bool:
        owners = {one.name: one.owner for one in store.list("process")}
        running = observe(store.id)
        counts = Counter(owners.get(name, "") for name, pids in running.items() for _ in pids)
        return counts == +Counter(wanted)

    good = orphans = 0
    try:
        for _ in range(KILLS):
            declare()
            killed(draw, "nubes.cluster.processes", str(path))
            with started("nubes.cluster.processes", str(path)):
                good += until(right)
            names = {one.name for one in store.list("process")}
            orphans += sum(len(pids) for name, pids in observe(store.id).items() if name not in names)
    finally:
        end(store.id)
        store.close()
    return good / KILLS, float(orphans)


def commanded(ctx: Context, seed: int) -> float:
    """Processes too many or too few that kills led to, the queue being empty again."""
    path = ctx.folder / f"commanded-{seed}.db"
    db, draw = queue(str(path)), rng(seed, "reconcile")
    mark = f"{ctx.folder.name}-{seed}"
    wanted: Counter[str] = Counter()
    args = ("nubes.papers.edge_triggered", str(path), mark, *COMMAND)
    wrong = 0
    before: Counter[str] = Counter()

    def empty() -> bool:
        left: int = db.execute("SELECT count(*) FROM commands").fetchone()[0]
        return not left

    try:
        for _ in range(KILLS):
            for name, replicas in scaled(draw).items():
                change = replicas - wanted[name]
                wanted[name] = replicas
                rows = [(name, change > 0)] * abs(change)
                db.executemany("INSERT INTO commands (deployment, start) VALUES (?, ?)", rows)
            killed(draw, *args)
            with started(*args):
                until(empty)
                time.sleep(0.2)  # the last one is taken; it is done in less
            running = observe(mark)
            drift = Counter({name: len(running.get(name, ())) - wanted[name] for name in wanted})
            wrong += sum(abs(drift[name] - before[name]) for name in wanted)
            before = drift
    finally:
        end(mark)
        db.close()
    return float(wrong)


def written(ctx: Context, seed: int) -> tuple[float, float]:
    """(share of updates that are there, conflicts seen)."""
    path = ctx.folder / f"written-{seed}.db"
    store = Store(path)
    store.apply("counter", "one", {})
    args = [sys.executable, "-c", WRITER, str(path), str(time.time() + 1.0), str(WRITES)]
    writers = [subprocess.Popen(args, stdout=subprocess.PIPE) for _ in range(2)]
    tries = sum(int(writer.communicate()[0]) for writer in writers)
    count = store.get("counter", "one").status["count"]
    store.close()
    return count / (2 * WRITES), float(tries)


def scaled(draw: Random) -> dict[str, int]:
    """What is declared next."""
    return {f"service-{i}": draw.randint(0, MOST) for i in range(DEPLOYMENTS)}


class started:
    """A process of our own for a while; then it is killed."""

    def __init__(self, module: str, *args: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-m", module, *args])

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def killed(draw: Random, module: str, *args: str) -> None:
    """Starts it and kills it at a time drawn."""
    with started(module, *args):
        time.sleep(draw.uniform(0.0, WINDOW_S))


def until(holds: Callable[[], bool]) -> bool:
    """Waits for it; False if it takes too long."""
    last = time.monotonic() + SETTLED_S
    while not holds():
        if time.monotonic() > last:
            return False
        time.sleep(0.02)
    return True


def end(mark: str) -> None:
    """Ends everything with that mark."""
    for pids in observe(mark).values():
        for pid in pids:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
