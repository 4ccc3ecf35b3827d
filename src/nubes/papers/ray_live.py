"""What the reproduction of Ray measures on worker processes."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from math import exp
from statistics import median
from typing import Any

import numpy as np

from nubes import tasks
from nubes.kernel.rng import rng
from nubes.papers.live import timed

CHAINED = 20_000  # numbers in each object of a chain: too large to travel within messages
MEAN_S, WORKERS = 0.05, 4


def _same(x: int) -> int:
    return x


@tasks.task
def same(x: int) -> int:
    return x


@tasks.task
def first(array: Any) -> float:
    return float(array[0])


@tasks.task
def more(array: Any) -> Any:
    return array * 1.0000001 + 1.0


@tasks.task
def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


class Total:
    def __init__(self) -> None:
        self.total = 0

    def add(self, n: int) -> int:
        self.total += n
        return self.total

    def pid(self) -> int:
        return os.getpid()


Totals = tasks.actor(checkpoint_every=100)(Total)


def rates(count: int) -> tuple[float, float]:
    """Empty tasks a second: ours, and those of the standard library's pool, whose workers are up before, too."""
    with tasks.Pool(workers=2):
        tasks.get([same.submit(n) for n in range(100)])
        ours = timed(lambda: tasks.get([same.submit(n) for n in range(count)]))
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(_same, range(100)))
        theirs = timed(lambda: [one.result() for one in [pool.submit(_same, n) for n in range(count)]])
    return count / ours, count / theirs


def added_ms(times: int) -> float:
    """Milliseconds by which an input of 100 MB makes a task longer."""
    with tasks.Pool(workers=2) as pool:
        refs = [pool.put(np.ones(size)) for size in (10, 12_500_000)]
        for ref in refs * 3:
            first.submit(ref).get()
        took: list[list[float]] = [[], []]
        for _ in range(times):
            for ref, samples in zip(refs, took, strict=True):
                samples.append(timed(lambda ref=ref: first.submit(ref).get()))  # type: ignore[misc]
    return (median(took[1]) - median(took[0])) * 1e3


def remade(count: int) -> float:
    """Share of a killed worker's chained objects that are made again and equal those of a plain loop."""
    start = np.arange(CHAINED, dtype=float)
    with tasks.Pool(workers=1) as pool:
        chain = [more.submit(pool.put(start))]
        while len(chain) < count:
            chain.append(more.submit(chain[-1]))
        chain[-1].get()
        (pid,) = pool.pids.values()
        os.kill(pid, signal.SIGKILL)
        while pid in pool.pids.values():
            time.sleep(0.001)
        right, value = 0, start
        for found in tasks.get(chain):
            value = more(value)
            right += bool(np.array_equal(value, found))
        return min(right, pool.controller.rerun) / count


def replays(seed: int, kills: int) -> list[int]:
    """How many calls of an actor were replayed after each kill of its worker; a million if its state went wrong."""
    draw, found, expected = rng(seed, "ray", "actor"), [], 0
    with tasks.Pool(workers=2) as pool:
        total = Totals.submit()
        for _ in range(kills):
            calls = draw.randint(100, 500)
            expected += calls
            last = tasks.get([total.add.submit(1) for _ in range(calls)])[-1]
            before = pool.controller.replayed
            pid = total.pid.submit().get()
            os.kill(pid, signal.SIGKILL)
            while pid in pool.pids.values():
                time.sleep(0.001)
            if last != expected or total.add.submit(0).get() != expected:
                return [10**6]
            found.append(pool.controller.replayed - before)
    return found


def rounds_over_loop(seed: int, rounds: int, sigma: float) -> float:
    """Time of rounds with a barrier over that of a wait(1) loop, over what the lengths drawn would give."""
    draw = rng(seed, "ray", "wait live")
    mean = exp(sigma**2 / 2)
    lengths = [[draw.lognormvariate(0.0, sigma) / mean * MEAN_S for _ in range(WORKERS)] for _ in range(rounds)]

    def barrier() -> None:
        for one in lengths:
            tasks.get([nap.submit(length) for length in one])

    def loop() -> None:
        left = [length for one in lengths for length in one][::-1]
        running = [nap.submit(left.pop()) for _ in range(WORKERS)]
        while running:
            done, running = tasks.wait(running, k=1)
            running += [nap.submit(left.pop()) for _ in done if left]

    with tasks.Pool(workers=WORKERS):
        tasks.get([nap.submit(0.01) for _ in range(4 * WORKERS)])
        ratio = timed(barrier) / timed(loop)
    return ratio / (sum(map(max, lengths)) * WORKERS / sum(map(sum, lengths)))
