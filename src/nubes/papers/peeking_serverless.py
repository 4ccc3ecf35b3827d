"""Peeking Behind the Curtains: a black-box probe suite, tried on platforms whose truth is known."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from nubes.kernel.policy import Paper
from nubes.kernel.rng import rng
from nubes.papers import Claim, Context, Result, at_least, at_most, between, reproduction
from nubes.papers import probe as probes
from nubes.papers.live import cloud, module
from nubes.papers.platforms import PROFILES, Platform, Profile
from nubes.papers.probe import Reply

PAPER = Paper(
    "peeking-serverless",
    "Serverless platform probe suite",
    "Peeking Behind the Curtains of Serverless Platforms",
    "USENIX ATC 2018",
)
CAPS = (0.25, 0.5)
STALE_SHARES = (0.0, 0.05, 0.2)

KEPT = Claim(
    "The idle lifetime is recovered from outside.",
    "|measured / configured keep-alive - 1|",
    "the configured fixed window",
    at_most(0.05),
)
HOST = Claim("On one machine the placement is named: all on one host.", "1 if named pack", "one host", at_least(1.0))
PLACED = Claim(
    "Packing, spreading and random placement are told apart.",
    "share of 10 platforms whose placement is named correctly",
    "platforms that differ in placement alone",
    at_least(0.9),
)
CPU = Claim(
    "The CPU cap is recovered.",
    "largest difference between measured share and control group quota, percentage points",
    "the configured limits, 25 % and 50 % of a CPU",
    at_most(5.0),
)
STALE = Claim(
    "The share of calls that an old version answers is recovered.",
    "largest difference between measured and injected share",
    "0, 5 and 20 % of calls sent to the old version",
    at_most(0.0),
)
HOST_MB = Claim(
    "On the aws-2018 profile the memory that one host takes is recovered.",
    "instances per host times their memory, MB",
    "the profile",
    between(3_328.0, 3_328.0),
    "3,328 MB",
)
HALVED = Claim(
    "And that idle instances are halved every 300 s.",
    "largest difference of the surviving share from 1/2, 1/4, 1/8 after 300, 600, 900 s, and from 0 after 27 min",
    "the profile",
    at_most(0.02),
    "half every 300 s, the last by 27 min",
)

CODE = """
import nubes
from nubes.papers import probe
app = nubes.App("probed")

@app.function(cpu={cpu})
def observe(spin_s, version):
    return probe.observe(spin_s, version)

@app.function(cpu={cpu})
def observe_old(spin_s, version):
    return probe.observe(spin_s, version)
"""


@reproduction(
    PAPER,
    claims=(KEPT, HOST, CPU, STALE, PLACED, HOST_MB, HALVED),
    area="functions",
    seam="analysis",
    mode="both",
)
def run(ctx: Context) -> Iterator[Result]:
    """The probes against this machine's cloud, then against published platforms in virtual time."""
    keep_s = ctx.pick(2.0, 20.0)
    lifetimes = [abs(kept(ctx, seed, keep_s) / keep_s - 1.0) for seed in ctx.each("idle lifetime")]
    yield ctx.result(KEPT, lifetimes, f"fixed-window(keep={keep_s:g}s)", "live")
    named = [float(one_host(ctx, seed) == "pack") for seed in ctx.each("placement")]
    yield ctx.result(HOST, named, "bursts of 4 on one machine", "live")
    shares = [cpu(ctx, seed) for seed in ctx.each("CPU share")]
    if any(share is None for share in shares):
        yield ctx.unmeasured(CPU, "control groups cannot be written here, so CPU is not capped", "live")
    else:
        yield ctx.result(CPU, [share for share in shares if share is not None], "1 s of spinning, three times", "live")
    calls = ctx.pick(100, 1000)
    gaps = [max(stale_gap(ctx, seed, share, calls) for share in STALE_SHARES) for seed in ctx.each("stale versions")]
    yield ctx.result(STALE, gaps, f"{calls} calls after an update, some sent to the old version on purpose", "live")
    right = [placed(seed) for seed in ctx.each("placements")]
    yield ctx.result(PLACED, right, "10 platforms of 16 hosts, 30 bursts of 4", "simulated")
    profile = PROFILES["aws-2018"]
    sizes = [
        float(probes.instances_per_host(Platform(profile, seed)) * profile.memory_mb)
        for seed in ctx.each("host memory")
    ]
    yield ctx.result(HOST_MB, sizes, "bursts of 200 instances of 128 MB, profile aws-2018", "simulated")
    halved = [halving(seed) for seed in ctx.each("idle curve")]
    yield ctx.result(HALVED, halved, "bursts of 64 instances, profile aws-2018", "simulated")


class Live:
    """Our own cloud as an endpoint; a share of calls may be sent to an old version on purpose."""

    def __init__(self, made: Any, calls: int = 1) -> None:
        self.made = made
        self.version = "new"
        self.old: set[int] = set()  # which calls, counted from 0, go to the old version
        self.called = 0
        self.threads = ThreadPoolExecutor(calls)

    def burst(self, calls: int, spin_s: float) -> list[Reply]:
        first, self.called = self.called, self.called + calls
        return list(self.threads.map(lambda n: self._call(n, spin_s), range(first, first + calls)))

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def _call(self, n: int, spin_s: float) -> Reply:
        old = n in self.old
        said = (self.made.observe_old if old else self.made.observe).remote(spin_s, "old" if old else self.version)
        return msgspec.convert(said, Reply)


def probed(ctx: Context, cpu: str = "0.01") -> Any:
    return module(ctx.folder / "code", "nubes_probed", CODE.format(cpu=cpu))


def kept(ctx: Context, seed: int, keep_s: float) -> float:
    """The idle lifetime that the probe finds."""
    made = probed(ctx)
    with cloud(ctx.folder / f"kept-{seed}", keep_alive=f"fixed-window(keep={keep_s}s)"), made.app.run():
        return probes.idle_lifetime(Live(made), keep_s / 6.0, 10 * keep_s)


def one_host(ctx: Context, seed: int) -> str:
    """The placement that the probe names on one machine."""
    made = probed(ctx)
    with cloud(ctx.folder / f"placed-{seed}", keep_alive="fixed-window(keep=0.1s)"), made.app.run():
        return probes.placement(Live(made, 4), trials=3, recycle_s=0.5)


def cpu(ctx: Context, seed: int) -> float | None:
    """The largest error of the CPU share, in points; None if it cannot be capped."""
    errors = []
    for cap in CAPS:
        made = probed(ctx, f"(0.01, {cap})")
        with cloud(ctx.folder / f"cpu-{cap}-{seed}") as client, made.app.run():
            if client.ask("status")["limits"] == "rlimit":
                return None
            errors.append(abs(probes.cpu_share(Live(made)) - cap) * 100.0)
    return max(errors)


def stale_gap(ctx: Context, seed: int, share: float, calls: int) -> float:
    """Difference between the stale share that the probe finds and the one that was injected."""
    made = probed(ctx)
    with cloud(ctx.folder / f"stale-{share}-{seed}"), made.app.run():
        endpoint = Live(made)
        endpoint.old = set(rng(seed, "stale").sample(range(calls), round(share * calls)))
        return abs(probes.stale(endpoint, "new", calls) - len(endpoint.old) / calls)


def placed(seed: int) -> float:
    """Share of 10 platforms whose placement is named correctly."""
    draw = rng(seed, "placements")
    right = 0
    for n in range(10):
        truth = draw.choice(["pack", "spread", "random"])
        platform = Platform(Profile(truth, hosts=16, keep_s=60.0), seed * 10 + n)
        right += probes.placement(platform, recycle_s=120.0) == truth
    return right / 10


def halving(seed: int) -> float:
    """How far the curve of surviving instances is from the published one."""
    found = probes.survivors(Platform(PROFILES["aws-2018"], seed), (301.0, 601.0, 901.0, 27 * 60.0 + 1.0))
    return max(abs(a - b) for a, b in zip(found, (0.5, 0.25, 0.125, 0.0), strict=True))
