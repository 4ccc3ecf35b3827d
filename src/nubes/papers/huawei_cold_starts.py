"""Serverless Cold Starts and Where to Find Them: its generator, timers as culprits, two remedies, and the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from nubes.functions.events import COLD
from nubes.functions.policies.huawei_cold_starts import PAPER
from nubes.papers import Claim, Context, Result, at_least, at_most, below, reproduction
from nubes.papers.live import cloud, module, timed
from nubes.papers.simulated import Source, azure, sweep, words

if TYPE_CHECKING:
    from nubes.workloads.workload import Workload

SAMPLES = 1_000_000
FIXED = "fixed-window(keep=60s)"

FIT = Claim(
    "The generators of cold-start times and of gaps between cold starts follow the published fits.",
    "largest relative error of mean and standard deviation over 10^6 samples of each",
    "LogNormal with mean 3.24 s, std 7.10 s; Weibull with mean 1.25 s, std 3.66 s",
    at_most(0.02),
    "0",
)
TIMERS = Claim(
    "Timers have far more than their share of cold starts.",
    "timers' share of cold starts / their share of the time that instances are loaded",
    FIXED,
    at_least(3.0),
    "6 (30 % of cold starts, 5 % of running pods)",
)
REMOVED = Claim(
    "A policy that knows timers removes their cold starts.",
    "cold starts of timers, timer-aware / fixed 60 s",
    FIXED,
    at_most(0.1),
)
IDLE = Claim("With less idle time.", "idle instance-minutes, timer-aware / fixed 60 s", FIXED, below(1.0))
SHAVED = Claim(
    "Delaying asynchronous calls by at most a minute shaves the peak.",
    "largest number of instances, peak-shaving / fifo",
    "fifo",
    at_most(0.9),
)
LEDGER = Claim(
    "The ledger splits what a cold call took into parts that add up.",
    "median over cold calls of |sum of the parts - what the caller measured| / what the caller measured",
    "the caller's own clock",
    at_most(0.02),
)


@reproduction(
    PAPER,
    claims=(FIT, TIMERS, REMOVED, IDLE, SHAVED, LEDGER),
    area="functions",
    seam="keep-alive, queueing",
    mode="both",
)
def run(ctx: Context) -> Iterator[Result]:
    """Its generator, its remedies on the Azure sample, and the ledger of live starts."""
    from nubes.replay.configuration import Configuration

    errors = [fit_error(seed) for seed in ctx.each("drawing samples")]
    yield ctx.result(FIT, errors, f"{SAMPLES:,} samples of each distribution", "simulated")
    make = azure(ctx, ctx.pick(100, 500), arrivals="equidistant")
    workload = f"{words(make(0))} Timers tick regularly."
    found = [timers(make, seed, FIXED) for seed in ctx.each("60 s keep-alive")]
    yield ctx.result(TIMERS, [one[1] / one[2] for one in found], workload, "simulated")
    aware = [timers(make, seed, "timer-aware") for seed in ctx.each("timer-aware keep-alive")]
    removed = [a[0] / max(1, b[0]) for a, b in zip(aware, found, strict=True)]
    yield ctx.result(REMOVED, removed, workload, "simulated")
    yield ctx.result(IDLE, [a[3] / b[3] for a, b in zip(aware, found, strict=True)], workload, "simulated")
    bursty = azure(ctx, ctx.pick(100, 500))
    shaved, at_once = sweep(ctx, bursty, [Configuration(FIXED, "peak-shaving"), Configuration(FIXED, "fifo")])
    peaks = [a.peak_instances / b.peak_instances for a, b in zip(shaved, at_once, strict=True)]
    yield ctx.result(SHAVED, peaks, words(bursty(0)), "simulated")
    count = ctx.pick(10, 50)
    gaps, ratios = [], []
    for seed in ctx.each("cold starts on this machine"):
        gap, ratio = split(ctx, seed, count)
        gaps.append(gap)
        ratios.append(ratio)
    about = f"{count} functions that import numpy, started from fresh interpreters; "
    about += f"median pod utility ratio {sorted(ratios)[len(ratios) // 2]:.2g}"
    yield ctx.result(LEDGER, gaps, about, "live")


def fit_error(seed: int) -> float:
    """The largest relative error of what the generators draw."""
    from nubes.workloads.draws import HUAWEI_GAP_S, HUAWEI_START_S, generator, lognormal, weibull

    worst = 0.0
    for name, draw, (mean, std) in (("start", lognormal, HUAWEI_START_S), ("gap", weibull, HUAWEI_GAP_S)):
        values = draw(generator(seed, "huawei fit", name), mean, std, SAMPLES)
        worst = max(worst, abs(values.mean() / mean - 1.0), abs(values.std() / std - 1.0))
    return float(worst)


def timers(make: Source, seed: int, keep_alive: str) -> tuple[int, float, float, float]:
    """(cold starts of timers, their share of all, their share of loaded time, idle minutes of all functions)."""
    from nubes.drivers.sim import simulate
    from nubes.functions.controller import Functions
    from nubes.replay.measures import measures

    workload: Workload = make(seed)
    outcome = simulate(workload, Functions(keep_alive, "fifo", "fresh"))
    timer = np.array([spec.trigger == "timer" for spec in workload.specs])
    cold = np.bincount(workload.function[outcome.how == COLD], minlength=len(timer))
    lives = outcome.lives
    loaded = np.minimum(lives.stop_s, workload.seconds) - np.minimum(lives.start_s, workload.seconds)
    by_function = np.bincount(lives.function[lives.function >= 0], loaded[lives.function >= 0], len(timer))
    return (
        int(cold[timer].sum()),
        float(cold[timer].sum() / max(1, cold.sum())),
        float(by_function[timer].sum() / by_function.sum()),
        measures(workload, outcome).idle_minutes,
    )


def split(ctx: Context, seed: int, count: int) -> tuple[float, float]:
    """(median gap between the parts' sum and the caller's clock, median utility ratio) of live cold starts."""
    from nubes.replay.ledger import ledger

    code = "import nubes, numpy\napp = nubes.App('starts')\n" + "".join(
        f"@app.function(cpu=0.01)\ndef f{i}():\n    return float(numpy.ones(10).sum())\n\n" for i in range(count)
    )
    made = module(ctx.folder / "code", "nubes_starts", code)
    folder = ctx.folder / f"starts-{seed}"
    took: dict[str, float] = {}
    with cloud(folder, keep_alive="fixed-window(keep=60s)", cold_start="fresh"), made.app.run():
        for i in range(count):
            took[f"starts/f{i}"] = timed(getattr(made, f"f{i}").remote)
    found = ledger(folder)
    gaps = [
        abs(sum(start.parts().values()) - took[start.function]) / took[start.function]
        for start in found.starts
        if start.complete
    ]
    utilities = [function.utility for function in found.functions if function.utility is not None]
    return float(np.median(gaps)), float(np.median(utilities))
