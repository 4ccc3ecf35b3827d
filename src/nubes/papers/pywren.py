"""PyWren: plain Python functions over many workers, with storage in between so that anything may fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from nubes.kernel.policy import Paper
from nubes.papers import Claim, Context, Result, at_least, at_most, between, reproduction
from nubes.papers.live import cloud, module, timed

PAPER = Paper("pywren", "PyWren", "Occupy the Cloud: Distributed Computing for the 99%", "SoCC 2017")
TASK_S = 0.2
WORKERS, READ_BYTES_S, READ_BYTES = 2_800, 30e6, 30e9
INVOKED_A_S = 300.0

TIME = Claim(
    "As fast as a local process pool.",
    "time of a map over two workers, nubes with submit=direct / concurrent.futures",
    "concurrent.futures.ProcessPoolExecutor(2)",
    at_most(1.15),
)
RESUMED = Claim(
    "A driver that was killed continues its job by its id and runs nothing again that was finished.",
    "items that were finished before the kill and ran again, or whose result is wrong",
    "a driver that starts over",
    at_most(0.0),
    "0",
)
CRASHES = Claim(
    "With 5 % of tasks killing their worker, every item has exactly one result, and the right one.",
    "share of items with exactly one right result",
    "no retry: 0.95",
    at_least(1.0),
    "1",
)
SHIPPED = Claim(
    "Closures, lambdas and functions of a local module run without packaging.",
    "share of the three kinds that give the right result",
    "none",
    at_least(1.0),
    "1",
)
READ = Claim(
    "2,800 workers that read 30 MB/s each reach the aggregate the paper measured.",
    "highest aggregate read rate, GB/s",
    "80 GB/s",
    between(72.0, 88.0),
    "80",
)
RAMP = Claim(
    "Workers come up as fast as the driver invokes them.",
    "workers a second that begin to read, between 10 and 90 % of them / invocations a second of the driver",
    "the driver's rate",
    between(0.9, 1.1),
)


@reproduction(
    PAPER,
    claims=(TIME, RESUMED, CRASHES, SHIPPED, READ, RAMP),
    area="functions",
    seam="programming-model",
    mode="both",
)
def run(ctx: Context) -> Iterator[Result]:
    """Maps on this machine, then 2,800 workers simulated."""
    tasks = ctx.pick(60, 200)
    about = f"{tasks} tasks of {TASK_S:g} s on 2 workers"
    yield ctx.result(TIME, [against_pool(ctx, seed, tasks) for seed in ctx.each("a map")], about, "live")
    again = [resumed(ctx, seed, tasks) for seed in ctx.each("killing a driver")]
    yield ctx.result(RESUMED, again, about + "; the driver is killed half-way", "live")
    whole = [crashed(ctx, seed, tasks) for seed in ctx.each("killing workers")]
    yield ctx.result(CRASHES, whole, f"{tasks} tasks, 5 % of first attempts exit their process", "live")
    yield ctx.result(
        SHIPPED, [shipped(ctx, seed) for seed in ctx.each("shipping functions")], "one call of each", "live"
    )
    runs = [fleet(seed) for seed in ctx.each("simulating 2,800 workers")]
    about = f"{WORKERS:,} workers invoked at {INVOKED_A_S:g} a second, cold starts from Huawei's LogNormal fit, "
    about += f"{READ_BYTES / 1e9:g} GB read by each"
    yield ctx.result(READ, [rate for rate, _ in runs], about, "simulated")
    yield ctx.result(RAMP, [ramp for _, ramp in runs], about, "simulated")


def nap(seconds: float) -> float:
    """The task: as long on any machine."""
    time.sleep(seconds)
    return seconds


def against_pool(ctx: Context, seed: int, tasks: int) -> float:
    """Ours over a process pool; workers of both are up before the clock starts."""
    from nubes.executor import Executor

    with ProcessPoolExecutor(2) as pool:
        list(pool.map(nap, [0.01] * 4))
        theirs = timed(lambda: list(pool.map(nap, [TASK_S] * tasks)))
    with cloud(ctx.folder / f"pool-{seed}"), Executor(instances=2) as executor:
        for future in executor.map(nap, [0.01] * 4):
            future.result()
        ours = timed(lambda: [future.result() for future in executor.map(nap, [TASK_S] * tasks)])
    return ours / theirs


DRIVER = """
import os, sys, time
from nubes.executor import Executor
folder = sys.argv[1]
def task(x):
    time.sleep({seconds})
    with open(os.path.join(folder, "ran"), "a") as file:
        file.write(f"{{x}}\\n")
    return x * x
if __name__ == "__main__":
    with Executor(submit="storage", instances=2) as executor:
        results = [future.result() for future in executor.map(task, range({tasks}), job="squares")]
    assert results == [x * x for x in range({tasks})], results
"""


def resumed(ctx: Context, seed: int, tasks: int) -> float:
    """Kills the driver half-way and starts it again with the same job id; counts finished items that ran again."""
    folder = ctx.folder / f"resumed-{seed}"
    folder.mkdir()
    script = folder / "driver.py"
    script.write_text(DRIVER.format(seconds=TASK_S / 4, tasks=tasks))
    argv = [sys.executable, str(script), str(folder)]
    results = folder / "data" / "jobs" / "squares" / "results"
    with cloud(folder / "data"):
        driver = subprocess.Popen(argv)
        until = time.monotonic() + 60.0
        while len(_numbers(results)) < tasks // 2 and time.monotonic() < until:
            time.sleep(0.005)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        before = _numbers(results)
        second = subprocess.run(argv, capture_output=True)
    ran = (folder / "ran").read_text().split()
    again = sum(ran.count(str(index)) > 1 for index in before)
    return float(again + (tasks if second.returncode else 0))


def _numbers(folder: Path) -> set[int]:
    return {int(name) for name in os.listdir(folder) if name.isdigit()} if folder.exists() else set()


def crashed(ctx: Context, seed: int, tasks: int) -> float:
    """Share of items with exactly one right result, 5 % of first attempts ending their process."""
    from nubes.executor import Executor
    from nubes.kernel.rng import rng

    folder = ctx.folder / f"crashed-{seed}"
    folder.mkdir()
    doomed = set(rng(seed, "pywren").sample(range(tasks), max(1, tasks // 20)))

    def task(x: int) -> int:
        mark = folder / f"died-{x}"
        if x in doomed and not mark.exists():
            mark.touch()
            os._exit(1)
        return x * x

    with cloud(folder / "data"), Executor(submit="storage", instances=2) as executor:
        futures = executor.map(task, range(tasks), job="crashes")
        right = sum(future.exception() is None and future.result() == x * x for x, future in enumerate(futures))
        visible = len(_numbers(folder / "data" / "jobs" / "crashes" / "results"))
    return float(right / tasks) if visible == tasks else 0.0


def shipped(ctx: Context, seed: int) -> float:
    """A closure, a lambda and a function of a module of the user's own."""
    from nubes.executor import Executor

    local = module(ctx.folder / "code", f"nubes_local_{seed}", "FACTOR = 3\n\ndef scaled(x):\n    return FACTOR * x\n")
    offset = 7

    def closure(x: int) -> int:
        return x + offset

    with cloud(ctx.folder / f"shipped-{seed}"), Executor() as executor:
        pairs = [
            (executor.call_async(closure, 1), 8),
            (executor.call_async(lambda x: x * offset, 2), 14),
            (executor.call_async(local.scaled, 5), 15),
        ]
        right = [future.exception() is None and future.result() == expected for future, expected in pairs]
    return float(sum(right) / len(right))


def fleet(seed: int) -> tuple[float, float]:
    """(highest aggregate GB/s, starts a second / invocations a second) of simulated workers."""
    from nubes.drivers.sim import simulate
    from nubes.functions.controller import Functions
    from nubes.functions.spec import FunctionSpec
    from nubes.workloads.draws import HUAWEI_START_S, generator, lognormal
    from nubes.workloads.workload import Workload

    read_s = READ_BYTES / READ_BYTES_S
    spec = FunctionSpec(name="fleet/read", timeout_s=86_400.0, startup_timeout_s=86_400.0, single_use=True)
    workload = Workload(
        "fleet", "made up", (spec,), np.arange(WORKERS) / INVOKED_A_S, np.zeros(WORKERS, np.int32),
        np.full(WORKERS, read_s), (lognormal(generator(seed, "fleet"), *HUAWEI_START_S, WORKERS),), 10 * read_s,
    )  # fmt: skip
    outcome = simulate(workload, Functions("no-unload", "fifo", "fresh"))
    began, ended = np.sort(outcome.started_s), np.sort(outcome.ended_s)
    reading = np.arange(1, WORKERS + 1) - np.searchsorted(ended, began, side="right")
    low, high = int(0.1 * WORKERS), int(0.9 * WORKERS)
    ramp = (high - low) / (began[high] - began[low])
    return float(reading.max() * READ_BYTES_S / 1e9), float(ramp / INVOKED_A_S)
