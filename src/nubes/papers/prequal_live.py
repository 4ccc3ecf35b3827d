"""Prequal between live workers, of which one is short of CPU at any time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from nubes.papers import Context, Result
from nubes.papers.live import by_the_clock
from nubes.papers.replicas import hog, replicas, trouble

WORKERS = 6
RATE = 80.0  # calls a second
WORK_S = 0.004
STAY_S, HELD_S, LEFT_S = 1.0, 0.045, 0.005


def live(ctx: Context) -> Iterator[Result]:
    from nubes.papers.prequal import ROBIN, WEIGHTED

    seconds = ctx.pick(8.0, 60.0)
    policies = ("prequal", "round-robin", "weighted-round-robin")
    rows = [
        [measured(ctx, policy, seed, seconds) for policy in policies]
        for seed in ctx.each("live workers and a hog that moves")
    ]
    about = (
        f"{WORKERS} workers, {RATE:g} calls a second at random for {seconds:g} s, {WORK_S * 1000:g} ms of CPU each; a "
        f"hog has one worker's core for {HELD_S / (HELD_S + LEFT_S):.0%} of the time and moves every {STAY_S:g} s"
    )
    yield ctx.result(ROBIN, [ours / robin for ours, robin, _ in rows], about, "live")
    yield ctx.result(WEIGHTED, [ours / weighted for ours, _, weighted in rows], about, "live")


def measured(ctx: Context, policy: str, seed: int, seconds: float) -> float:
    """The 99th percentile of latency under that policy."""
    import numpy as np

    from nubes.kernel.rng import rng

    draw, moves = rng(seed, "prequal live"), rng(seed, "hog")
    with replicas(ctx, f"{policy}-{seed}", f"balancing={policy!r}", WORKERS, cpu_s=WORK_S) as (_, made, pids):
        at, calls = 0.0, []
        while (at := at + draw.expovariate(RATE)) < seconds:
            calls.append((at, made.work, ("",)))
        with trouble(hog(pids, moves, STAY_S, HELD_S, LEFT_S)):
            done = asyncio.run(by_the_clock(calls))
    return float(np.quantile([took for took, _ in done], 0.99))
