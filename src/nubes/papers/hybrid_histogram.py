"""Serverless in the Wild: fewer cold starts than any fixed keep-alive at no more idle memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np

from nubes.functions.policies.hybrid_histogram import PAPER
from nubes.papers import Claim, Context, Result, at_most, reproduction
from nubes.papers.live import by_the_clock, cloud, module
from nubes.papers.simulated import azure, sweep, with_specs, with_starts, words

FIXED = ("5m", "10m", "20m", "60m", "120m")
BASELINE = "fixed-window(keep=10m)"
INSTANT_S = 1e-3
APP = "an instance takes any number of calls at once and starts take next to no time, as in the paper's simulator"
LIVE_PERIODS_S = (5.0, 180.0)

COLD = Claim(
    "Fewer cold starts for the 75th-percentile function than a 10-minute keep-alive.",
    "75th percentile over functions of the share of calls that start cold, hybrid (R = 4 h) / fixed 10 min",
    BASELINE,
    at_most(0.5),
    "0.4 (10 min has about 2.5 times the cold starts, at equal memory)",
)
IDLE = Claim(
    "It needs no more memory-time for that.",
    "idle instance-minutes, hybrid / fixed 10 min",
    BASELINE,
    at_most(1.0),
    "equal memory",
)
FRONTIER = Claim(
    "No fixed keep-alive has both fewer cold starts and fewer idle minutes.",
    "fixed windows of 5, 10, 20, 60, 120 min and no unloading that are at least as good on both and better on one",
    "fixed-window of several lengths, no-unload",
    at_most(0.0),
)
SCALED_COLD = Claim(
    "Also where an instance takes one call at a time, so that functions scale out.",
    "75th percentile over functions of the share of calls that start cold, hybrid / fixed 10 min",
    BASELINE,
    at_most(0.5),
)
SCALED_IDLE = Claim(
    "Also there it needs no more memory-time.",
    "idle instance-minutes, hybrid / fixed 10 min",
    BASELINE,
    at_most(1.0),
)
LIVE = Claim(
    "The same policy object, live, starts as many calls cold as the simulator says.",
    "share of cold calls, live minus simulated, in points from 0 to 1 (absolute)",
    "a replay of the run's own recording",
    at_most(0.05),
)


@reproduction(
    PAPER,
    claims=(COLD, IDLE, FRONTIER, SCALED_COLD, SCALED_IDLE, LIVE),
    area="functions",
    seam="keep-alive",
    mode="both",
)
def run(ctx: Context) -> Iterator[Result]:
    """Simulated on the Azure sample, then live on periodic functions."""
    from nubes.replay.configuration import configurations

    functions = ctx.pick(100, 500)
    unlimited = with_starts(with_specs(azure(ctx, functions), concurrency=1_000_000), INSTANT_S)
    texts = (
        "hybrid-histogram",
        BASELINE,
        *(f"fixed-window(keep={keep})" for keep in FIXED if keep != "10m"),
        "no-unload",
    )
    rows = sweep(ctx, unlimited, configurations(texts))
    workload = f"{words(unlimited(0))} Here {APP}."
    cold = [[m.function_cold[2] for m in row] for row in rows]
    idle = [[m.idle_minutes for m in row] for row in rows]
    yield ctx.result(COLD, ratios(cold[0], cold[1]), workload, "simulated")
    yield ctx.result(IDLE, ratios(idle[0], idle[1]), workload, "simulated")
    better = [
        float(sum(dominates((cold[i][s], idle[i][s]), (cold[0][s], idle[0][s])) for i in range(1, len(rows))))
        for s in range(ctx.seeds)
    ]
    yield ctx.result(FRONTIER, better, workload, "simulated")
    make = azure(ctx, functions)
    ours, fixed = sweep(ctx, make, configurations(texts[:2]))
    workload = words(make(0))
    cold_ratios = ratios([m.function_cold[2] for m in ours], [m.function_cold[2] for m in fixed])
    yield ctx.result(SCALED_COLD, cold_ratios, workload, "simulated")
    idle_ratios = ratios([m.idle_minutes for m in ours], [m.idle_minutes for m in fixed])
    yield ctx.result(SCALED_IDLE, idle_ratios, workload, "simulated")
    speed = ctx.pick(8.0, 1.0)
    length_s = ctx.pick(30.0, 600.0)
    gaps = [live_gap(ctx, seed, speed, length_s) for seed in ctx.each("calling 20 periodic functions")]
    periods = " to ".join(f"{period / speed:g}" for period in LIVE_PERIODS_S)
    yield ctx.result(
        LIVE, gaps, f"20 functions called every {periods} s for {length_s:g} s; 1 min is {1 / speed:g} s", "live"
    )


def ratios(values: list[float], of: list[float]) -> list[float]:
    """Seed by seed."""
    return [a / b if b else float("inf") if a else 1.0 for a, b in zip(values, of, strict=True)]


def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether `a` is at least as low as `b` in both, and lower in one."""
    return a != b and a[0] <= b[0] and a[1] <= b[1]


def live_gap(ctx: Context, seed: int, speed: float, length_s: float) -> float:
    """Cold share live minus simulated, for a run with time compressed: a minute is 1 / `speed` seconds."""
    from nubes.drivers.sim import simulate
    from nubes.functions.controller import Functions
    from nubes.replay.measures import measures
    from nubes.workloads.draws import generator
    from nubes.workloads.recording import load_recording

    source = "import time, nubes\napp = nubes.App('periodic')\n" + "".join(
        f"@app.function(cpu=0.01)\ndef f{i}():\n    time.sleep(0.02)\n\n" for i in range(20)
    )
    made = module(ctx.folder / "code", "nubes_periodic", source)
    draw = generator(seed, "hybrid-histogram live")
    calls = []
    for i, period_s in enumerate(np.geomspace(*LIVE_PERIODS_S, 20) / speed):
        phase = draw.random() * min(period_s, length_s)
        calls += [(at, getattr(made, f"f{i}"), ()) for at in np.arange(phase, length_s, period_s)]
    folder = ctx.folder / f"live-{seed}"
    keep_alive = f"hybrid-histogram(range={240 / speed}s,bin={1 / speed}s)"
    with cloud(folder, keep_alive=keep_alive, cold_start="fresh"), made.app.run():
        asyncio.run(by_the_clock(sorted(calls, key=lambda call: call[0])))
    recording = load_recording(folder)
    was = measures(recording.workload, recording.measured)
    replayed = simulate(recording.workload, Functions(), controls=recording.controls)
    return abs(was.cold_share - measures(recording.workload, replayed).cold_share)
