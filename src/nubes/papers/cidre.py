"""CIDRE: concurrency-aware scaling and eviction against FaasCache, on traces with memory swept, and live."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from nubes.functions.policies.cidre import PAPER
from nubes.papers import Claim, Context, Result, at_most, below, reproduction
from nubes.papers.live import cloud, module
from nubes.papers.simulated import Source, azure, source, sweep, words

if TYPE_CHECKING:
    from nubes.replay.measures import Measures
    from nubes.workloads.workload import Workload

QUEUE = "fifo(patience=1d)"  # whoever fits may pass, as where these policies come from
POLICIES = ("cidre", "cidre-css", "cidre-bss", "faascache")
SHARES = (0.05, 0.40)  # of cold calls under FaasCache: where memory is short, but not hopelessly
STEPS = 12  # memory sizes tried, each 1.5 times the one before, up to what is needed if nothing is ever evicted
IMPORT_S, EXEC_S = 2.0, 0.3


def _cold(trace: str) -> Claim:
    return Claim(
        f"Fewer cold starts than FaasCache at every memory size where that has 5 to 40 %, on the {trace} trace.",
        "share of cold calls, CIDRE / FaasCache, at the memory size where this is highest",
        "faascache",
        at_most(0.75),
        "up to 75.1 % lower (its ratio: 0.249)",
    )


def _wait(trace: str) -> Claim:
    return Claim(
        f"Calls do not wait longer for it, on the {trace} trace.",
        "average wait for an instance, CIDRE / FaasCache, at the memory size where this is highest",
        "faascache",
        at_most(1.0),
        "up to 39.3 % lower overhead",
    )


def _order(trace: str) -> Claim:
    return Claim(
        f"Each of its parts helps, on the {trace} trace at medium memory: CIDRE <= CSS <= BSS <= FaasCache.",
        "largest of the three ratios of cold shares between neighbours in that order",
        "faascache, cidre-bss, cidre-css",
        at_most(1.0),
    )


TRACES = ("iluvatar", "Azure")
COLD, WAIT, ORDER = ({trace: claim(trace) for trace in TRACES} for claim in (_cold, _wait, _order))
LIVE_STARTS = Claim(
    "Live, with bursty closed-loop clients and 2 s imports, it starts fewer instances than FaasCache.",
    "instances started, CIDRE / FaasCache",
    "faascache",
    below(1.0),
)
LIVE_P99 = Claim(
    "And calls take no longer.",
    "99th percentile of latency, CIDRE / FaasCache",
    "faascache",
    at_most(1.0),
)
CLAIMS = (*(claims[trace] for trace in TRACES for claims in (COLD, WAIT, ORDER)), LIVE_STARTS, LIVE_P99)


@reproduction(PAPER, claims=CLAIMS, area="functions", seam="keep-alive", mode="both")
def run(ctx: Context) -> Iterator[Result]:
    """Two traces, memory swept, then live bursts."""
    iluvatar = source(ctx, "iluvatar-functions", "bursty(functions=21,burst=10,gap=10s,length=300s,start_s=3.0)")
    yield from swept(ctx, "iluvatar", iluvatar)
    yield from swept(ctx, "Azure", azure(ctx, ctx.pick(100, 500)), minutes=ctx.pick(60.0, 480.0))
    rounds = ctx.pick(4, 20)
    pairs = []
    for seed in ctx.each("bursts on live instances"):
        pairs.append([live(ctx, policy, seed, rounds) for policy in ("cidre", "faascache")])
    about = f"6 functions, {IMPORT_S:g} s imports, {EXEC_S:g} s calls, room for 9; {rounds} bursts of 4 to 8 clients"
    yield ctx.result(LIVE_STARTS, [ours[0] / theirs[0] for ours, theirs in pairs], about, "live")
    yield ctx.result(LIVE_P99, [ours[1] / theirs[1] for ours, theirs in pairs], about, "live")


def swept(ctx: Context, trace: str, make: Source, minutes: float = 0.0) -> Iterator[Result]:
    """The three claims on one trace."""
    from nubes.replay.configuration import Configuration

    def cut(seed: int) -> Workload:
        workload = make(seed)
        return workload.until(minutes * 60.0) if minutes else workload

    first = cut(0)
    workload = words(first) + (f" Its first {minutes:g} minutes." if minutes else "")
    (unlimited,) = sweep(ctx, cut, [Configuration("no-unload")])
    peak = max(m.peak_bytes for m in unlimited)
    largest = max(spec.memory_bytes for spec in first.specs)
    sizes = [size for step in range(STEPS) if (size := peak / 1.5**step) >= largest]
    tried = sweep(ctx, cut, [Configuration("faascache", QUEUE, memory_bytes=size) for size in sizes])
    low, high = SHARES
    short = [i for i, row in enumerate(tried) if low <= sorted(m.cold_share for m in row)[len(row) // 2] <= high]
    if not short:
        why = "at no memory size does FaasCache start 5 to 40 % of calls cold on this workload"
        yield from (ctx.unmeasured(claims[trace], why, "simulated") for claims in (COLD, WAIT, ORDER))
        return
    grid = [Configuration(policy, QUEUE, memory_bytes=sizes[i]) for policy in POLICIES[:3] for i in short]
    rows = sweep(ctx, cut, grid)
    by_policy = {policy: rows[n * len(short) : (n + 1) * len(short)] for n, policy in enumerate(POLICIES[:3])}
    by_policy["faascache"] = [tried[i] for i in short]
    exec_s = [float(cut(seed).exec_s.mean()) for seed in range(ctx.seeds)]
    seeds = range(ctx.seeds)
    sizes_gib = f"{sizes[short[-1]] / 2**30:.3g} to {sizes[short[0]] / 2**30:.3g} GiB"
    workload += f" Memory {sizes_gib} in {len(short)} steps."

    def worst(value: int, seed: int) -> float:
        ours, theirs = by_policy["cidre"], by_policy["faascache"]
        if value == 0:
            return max(a[seed].cold_share / b[seed].cold_share for a, b in zip(ours, theirs, strict=True))
        return max(wait(a[seed], exec_s[seed]) / wait(b[seed], exec_s[seed]) for a, b in zip(ours, theirs, strict=True))

    yield ctx.result(COLD[trace], [worst(0, seed) for seed in seeds], workload, "simulated")
    yield ctx.result(WAIT[trace], [worst(1, seed) for seed in seeds], workload, "simulated")
    middle = len(short) // 2
    shares = [[by_policy[policy][middle][seed].cold_share for policy in POLICIES] for seed in seeds]
    steps = [max(a / b for a, b in pairwise(row)) for row in shares]
    yield ctx.result(ORDER[trace], steps, f"{workload} Medium: {sizes[short[middle]] / 2**30:.3g} GiB.", "simulated")


def wait(measured: Measures, exec_s: float) -> float:
    """Average seconds between a call's arrival and its start."""
    return max(measured.mean_latency_s - exec_s, 1e-9)


def live(ctx: Context, policy: str, seed: int, rounds: int) -> tuple[float, float]:
    """(instances started, 99th percentile of latency in seconds) of bursts against live instances."""
    from nubes.kernel.rng import rng
    from nubes.replay.measures import measures
    from nubes.workloads.recording import load_recording

    head = f"import time, nubes\ntime.sleep({IMPORT_S})\napp = nubes.App('bursts')\n"
    one = "@app.function(cpu=0.01, memory='{memory}MiB')\ndef f{i}():\n    time.sleep({exec_s})\n\n"
    folder = ctx.folder / f"{policy}-{seed}"
    with cloud(folder, keep_alive=policy, cold_start="fresh") as client:
        room = int(client.ask("status")["memory_bytes"] / 9 / 2**20)
        made = module(
            ctx.folder / "code",
            "nubes_bursts",
            head + "".join(one.format(memory=room, i=i, exec_s=EXEC_S) for i in range(6)),
        )
        draw = rng(seed, "cidre live")

        async def client_of(function: object, calls: int) -> None:
            for _ in range(calls):
                await function.remote.aio()  # type: ignore[attr-defined]

        async def bursts() -> None:
            for _ in range(rounds):
                function = getattr(made, f"f{draw.randrange(6)}")
                await asyncio.gather(*(client_of(function, 3) for _ in range(draw.randint(4, 8))))

        with made.app.run():
            asyncio.run(bursts())
    recording = load_recording(folder)
    found = measures(recording.workload, recording.measured)
    return float(found.starts), found.latency_s.p99
