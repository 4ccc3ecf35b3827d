"""XFaaS: work that can wait fills the troughs, callees are protected, and locality groups save worker memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from nubes.functions.policies.xfaas import PAPER
from nubes.functions.policies.xfaas_regions import Footprint, locality_groups, two_choices
from nubes.papers import Claim, Context, Result, above, at_least, at_most, reproduction
from nubes.papers.callee import CALLEE_RPS, CALLERS, pushed
from nubes.papers.simulated import azure, words

if TYPE_CHECKING:
    from nubes.workloads.workload import Workload

DAY_S, HOUR_S = 86_400.0, 3_600.0
PEAK_TO_TROUGH, UTILISATION = 4.3, 0.66
RESIDENT_S = 600.0  # how long a worker keeps the code of a function it ran
SLOTS, GROUPS = 2, 4

FLAT = Claim(
    "Deferring what can wait flattens the executed load.",
    "highest over lowest hour of executed CPU time within a day, at a capacity of mean load / 0.66",
    "fifo at a capacity for the peak",
    at_most(1.6),
    "66 % mean utilisation although demand peaks at about 4.3 times its trough",
)
STEEP = Claim(
    "Run at once, the same calls do peak.",
    "highest over lowest hour of executed CPU time within a day, under fifo",
    "fifo at a capacity for the peak",
    at_least(4.0),
    "4.3",
)
IN_TIME = Claim(
    "Every opportunistic call is finished within a day.",
    "longest time from arrival to answer of an opportunistic call, hours",
    "the deadline",
    at_most(24.0),
    "24",
)
PROMPT = Claim(
    "Reserved calls start within seconds.",
    "99th percentile of a reserved call's wait for its start, seconds",
    "the deadline",
    at_most(5.0),
)
GOODPUT = Claim(
    "Callers that back off leave an overloaded service its goodput.",
    "answered requests a second / what the callee sustains, after warming up",
    "fifo, no limits",
    at_least(0.9),
)
ERRORS = Claim(
    "And few of their calls are refused.",
    "refused / issued requests, after warming up",
    "fifo, no limits",
    at_most(0.05),
)
UNPROTECTED = Claim(
    "Without protection most calls are refused.", "refused / issued requests under fifo", "fifo, no limits", above(0.5)
)
MEMORY = Claim(
    "Locality groups reduce what workers hold in memory.",
    "median over workers and minutes of resident code bytes, groups / routing anywhere",
    "the less loaded of two random workers, for each call",
    at_most(0.9),
    "0.882 (11.8 % less)",
)
FULLEST = Claim(
    "Also what the fullest workers hold.",
    "95th percentile over workers and minutes of resident code bytes, groups / routing anywhere",
    "the less loaded of two random workers, for each call",
    at_most(0.9),
    "0.886 (11.4 % less)",
)
LATENCY = Claim(
    "At equal latency.",
    "mean time from arrival to end of a call, groups / routing anywhere",
    "the less loaded of two random workers, for each call",
    at_most(1.05),
    "equal",
)


@reproduction(
    PAPER,
    claims=(FLAT, STEEP, IN_TIME, PROMPT, GOODPUT, ERRORS, UNPROTECTED, MEMORY, FULLEST, LATENCY),
    area="functions",
    seam="queueing",
    mode="both",
)
def run(ctx: Context) -> Iterator[Result]:
    """A day with a 4.3 x swing and locality groups simulated; a callee with a limit live."""
    days = [shifted(ctx, seed) for seed in ctx.each("a day of calls, half of which can wait")]
    workload = words(diurnal(ctx, 0)) + " Measured on the second of two days."
    for claim, values in zip((FLAT, STEEP, IN_TIME, PROMPT), zip(*days, strict=True), strict=True):
        yield ctx.result(claim, values, workload, "simulated")
    window_s, length_s = ctx.pick(2.0, 6.0), ctx.pick(40.0, 180.0)
    callers = []
    for seed in ctx.each("calling a service three times harder than it can stand"):
        protected = pushed(ctx, f"xfaas(window={window_s:g}s,slow_start=0)", seed, length_s, ctx.pick(20.0, 60.0))
        callers.append((*protected, pushed(ctx, "fifo", seed, length_s / 2, length_s / 4)[1]))
    about = f"{CALLERS} functions, {CALLEE_RPS:g} calls a second each, at a service that sustains {CALLEE_RPS:g}; "
    about += f"control windows of {window_s:g} s, slow start off"
    for claim, values in zip((GOODPUT, ERRORS, UNPROTECTED), zip(*callers, strict=True), strict=True):
        yield ctx.result(claim, values, about, "live")
    make = azure(ctx, 500)
    minutes = ctx.pick(30.0, 240.0)
    routed = [routing(make(seed).until(minutes * 60.0), seed) for seed in ctx.each("routing to workers")]
    workload = f"{words(make(0))} Its first {minutes:g} minutes, over workers of {SLOTS} slots at 66 % utilisation."
    for claim, values in zip((MEMORY, FULLEST, LATENCY), zip(*routed, strict=True), strict=True):
        yield ctx.result(claim, values, workload, "simulated")


# -- time shifting -------------------------------------------------------------------------------------------------


def diurnal(ctx: Context, seed: int) -> Workload:
    """Two days of calls drawn from the Azure sample, with a swing of 4.3 between peak and trough.

    Every function is there twice, once reserved and once opportunistic, and each call goes to one of them at random.
    """
    from dataclasses import replace

    from nubes.workloads.draws import generator

    base = azure(ctx, 100)(seed)
    calls, cpus = ctx.pick((60_000, 40.0), (1_000_000, 200.0))
    draw = generator(seed, "xfaas diurnal")
    swing = (PEAK_TO_TROUGH - 1.0) / (PEAK_TO_TROUGH + 1.0)
    at = draw.random(3 * calls) * 2.0 * DAY_S
    at = at[draw.random(len(at)) * (1.0 + swing) < 1.0 + swing * np.sin(2.0 * np.pi * at / DAY_S)][:calls]
    picked = draw.integers(0, base.calls, len(at))
    later = draw.integers(0, 2, len(at)).astype(np.int32)
    exec_s = base.exec_s[picked]
    exec_s = np.minimum(exec_s, np.quantile(exec_s, 0.999))
    exec_s = exec_s * (cpus * 2.0 * DAY_S / exec_s.sum())
    function = base.function[picked] * 2 + later
    load = np.bincount(function, exec_s, minlength=2 * len(base.specs)) / (2.0 * DAY_S)
    specs = []
    for i, spec in enumerate(base.specs):
        for kind, share in zip(("reserved", "opportunistic"), load[2 * i : 2 * i + 2], strict=True):
            quota_cpu = float(max(share, 1e-3)) if kind == "opportunistic" else 0.0
            one = {"name": f"{spec.name}-{kind}", "cpu": 1.0, "quota": kind, "quota_cpu": quota_cpu}
            specs.append(msgspec.structs.replace(spec, **one))
    order = np.argsort(at, kind="stable")
    source = (
        f"drawn from {base.name}, scaled to a mean load of {cpus:g} CPUs, the longest 0.1 % "
        f"cut; half of each function's calls are opportunistic; demand peaks at 4.3 times its trough (seed {seed})."
    )
    instant = (np.array([0.01]),) * len(specs)
    return replace(
        base, name="two days", source=source, specs=tuple(specs), arrival_s=at[order], function=function[order],
        exec_s=exec_s[order], start_s=instant, seconds=2.0 * DAY_S,
    )  # fmt: skip


def shifted(ctx: Context, seed: int) -> tuple[float, float, float, float]:
    """(swing of executed load, the same under fifo, longest opportunistic hours, p99 reserved wait)."""
    from nubes.drivers.sim import simulate
    from nubes.functions.controller import Functions

    workload = diurnal(ctx, seed)
    capacity = math.ceil(workload.exec_s.sum() / workload.seconds / UTILISATION)
    ours = simulate(workload, Functions("no-unload", "xfaas", "fresh", cpu=capacity))
    at_once = simulate(workload, Functions("no-unload", "fifo", "fresh"))
    opportunistic = workload.function % 2 == 1
    took = np.where(np.isnan(ours.ended_s), math.inf, ours.ended_s) - workload.arrival_s
    waited = np.where(np.isnan(ours.started_s), math.inf, ours.started_s) - workload.arrival_s
    return (
        swing_of(ours.started_s, ours.ended_s),
        swing_of(at_once.started_s, at_once.ended_s),
        float(took[opportunistic].max()) / HOUR_S,
        float(np.quantile(waited[~opportunistic], 0.99)),
    )


def swing_of(started_s: Any, ended_s: Any) -> float:
    """Highest over lowest CPU time executed in an hour of the second day."""
    edges = np.arange(DAY_S, 2.0 * DAY_S + 1.0, HOUR_S)
    done = [np.clip(np.minimum(ended_s, b) - np.maximum(started_s, a), 0.0, None) for a, b in pairwise(edges)]
    hours = [float(np.nansum(seconds)) for seconds in done]
    return max(hours) / max(min(hours), 1e-9)


# -- locality ------------------------------------------------------------------------------------------------------


def routing(workload: Workload, seed: int) -> tuple[float, float, float]:
    """(median resident bytes, 95th percentile, mean latency) of locality groups over routing anywhere.

    Groups are made from the first third, where nothing is measured yet, as they would be from the past.
    """
    from nubes.kernel.rng import rng

    names = [spec.name for spec in workload.specs]
    busy = float(workload.exec_s.sum()) / workload.seconds
    workers = max(2 * GROUPS, math.ceil(busy / UTILISATION / SLOTS))
    past = workload.until(workload.seconds / 3.0)
    load = np.bincount(past.function, past.exec_s, minlength=len(names)) / past.seconds
    known = {n: Footprint(s.memory_bytes, float(c)) for n, s, c in zip(names, workload.specs, load, strict=True)}
    of = {name: group.workers for group in locality_groups(known, workers, GROUPS) for name in group.functions}
    everyone = range(workers)
    draw = rng(seed, "routing")
    grouped = routed(workload, workers, lambda f, left: two_choices(of[names[f]], left, draw))
    anywhere = routed(workload, workers, lambda f, left: two_choices(everyone, left, draw))
    return grouped[0] / anywhere[0], grouped[1] / anywhere[1], grouped[2] / anywhere[2]


def routed(workload: Workload, workers: int, choose: Any) -> tuple[float, float, float]:
    """(median and 95th percentile over workers and minutes of resident bytes, mean latency); calls queue at workers."""
    from heapq import heappop, heappush

    free = [[0.0] * SLOTS for _ in range(workers)]
    ends: list[tuple[float, int, float]] = []
    left: dict[int, float] = dict.fromkeys(range(workers), 0.0)  # seconds of work on each worker
    used: list[dict[int, float]] = [{} for _ in range(workers)]
    samples: list[float] = []
    size = [spec.memory_bytes for spec in workload.specs]
    begin, minute, latency, count = workload.seconds / 3.0, workload.seconds / 3.0, 0.0, 0
    columns = (workload.arrival_s.tolist(), workload.function.tolist(), workload.exec_s.tolist())
    for now, f, took in zip(*columns, strict=True):
        while ends and ends[0][0] <= now:
            _, worker, done = heappop(ends)
            left[worker] -= done
        while now >= minute:
            samples += [sum(size[g] for g, at in seen.items() if at > minute - RESIDENT_S) for seen in used]
            minute += 60.0
        worker = choose(f, left)
        start = max(now, heappop(free[worker]))
        heappush(free[worker], start + took)
        heappush(ends, (start + took, worker, took))
        left[worker] += took
        used[worker][f] = start + took
        if now >= begin:
            latency += start + took - now
            count += 1
    return float(np.median(samples)), float(np.quantile(samples, 0.95)), latency / max(1, count)
