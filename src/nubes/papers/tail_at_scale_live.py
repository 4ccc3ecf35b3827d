"""Hedging and probation between live instances that are stopped, or slow."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from nubes.papers import Context, Result
from nubes.papers.live import by_the_clock
from nubes.papers.replicas import function, pauses, replicas, trouble

INSTANCES = 4
RATE = 60.0  # calls a second
WORK_S, SLOW_S = 0.005, 0.1
PAUSE_S, EVERY_S = 0.2, 1.8  # one of the instances is stopped
FAIR_S, SICK_S, WELL_S = 3.0, 6.0, 6.0  # how long all are alike, one is slow, and it is not any more


def live(ctx: Context) -> Iterator[Result]:
    from nubes.papers.tail_at_scale import BACK, OUT, PAUSED, WORK

    seconds = ctx.pick(12.0, 60.0)
    rows = [
        (paused(ctx, "none", seed, seconds), paused(ctx, "tail-at-scale(percentile=95)", seed, seconds))
        for seed in ctx.each("live instances that are stopped now and then")
    ]
    about = (
        f"{INSTANCES} instances in turn, {RATE:g} calls a second at random for {seconds:g} s, {WORK_S * 1000:g} ms "
        f"each; about every {EVERY_S + PAUSE_S:g} s one of the instances is stopped for {PAUSE_S * 1000:g} ms"
    )
    yield ctx.result(PAUSED, [once[0] / hedged[0] for once, hedged in rows], about, "live")
    yield ctx.result(WORK, [hedged[1] for _, hedged in rows], about, "live")
    probations = [probation(ctx, seed) for seed in ctx.each("a live instance that gets slow")]
    about = (
        f"{INSTANCES} instances, {RATE:g} calls a second of {WORK_S * 1000:g} ms; one takes {SLOW_S * 1000:g} ms for "
        f"{SICK_S:g} s and is as it was for {WELL_S:g} s then; its share is that of the last half of these"
    )
    yield ctx.result(OUT, [out for out, _ in probations], about, "live")
    yield ctx.result(BACK, [back for _, back in probations], about, "live")


def paused(ctx: Context, hedging: str, seed: int, seconds: float) -> tuple[float, float]:
    """(99th percentile of latency, copies / calls) of calls to instances that are stopped now and then."""
    import numpy as np

    from nubes.kernel.rng import rng

    draw = rng(seed, "pauses")
    options = f"balancing='round-robin', hedging={hedging!r}, idempotent=True"
    name = f"{hedging.partition('(')[0]}-{seed}"
    with replicas(ctx, name, options, INSTANCES, sleep_s=WORK_S) as (client, made, pids):
        calls = [(at, made.work, ("",)) for at in arrivals(seed, seconds)]
        with trouble(pauses(pids, draw, PAUSE_S, EVERY_S)):
            done = asyncio.run(by_the_clock(calls))
        copies = function(client)["copies"]
    return float(np.quantile([took for took, _ in done], 0.99)), copies / len(calls)


def probation(ctx: Context, seed: int) -> tuple[float, float]:
    """(seconds until an instance that got slow delayed its last call, its share after its recovery / a fair share)."""
    slow = ctx.folder / f"slow-{seed}"
    options = "balancing='tail-at-scale', idempotent=True"
    with replicas(ctx, f"probation-{seed}", options, INSTANCES, sleep_s=WORK_S, slow_s=SLOW_S) as (_, made, pids):
        at_s = arrivals(seed, FAIR_S + SICK_S + WELL_S)
        with trouble(_illness(slow, pids[0])):
            done = asyncio.run(by_the_clock([(at, made.work, (str(slow),)) for at in at_s]))
    ends = [(at, at + took, pid) for at, (took, pid) in zip(at_s, done, strict=True)]
    delayed = [end for at, end, pid in ends if pid == pids[0] and end - at >= SLOW_S * 0.9 and at < FAIR_S + SICK_S]
    last = [pid for at, _, pid in ends if at > FAIR_S + SICK_S + WELL_S / 2.0]
    return max(0.0, max(delayed, default=FAIR_S) - FAIR_S), last.count(pids[0]) / len(last) * INSTANCES


def _illness(path: Path, pid: int) -> Callable[[threading.Event], None]:
    """One of the instances is slow for a while."""

    def fall_ill(over: threading.Event) -> None:
        over.wait(FAIR_S)
        path.write_text(str(pid))
        over.wait(SICK_S)
        path.write_text("")

    return fall_ill


def arrivals(seed: int, seconds: float) -> list[float]:
    """When calls are made."""
    from nubes.kernel.rng import rng

    draw, at, times = rng(seed, "arrivals"), 0.0, []
    while (at := at + draw.expovariate(RATE)) < seconds:
        times.append(at)
    return times
