"""XFaaS: work that can wait fills the troughs, callees are protected, and locality groups save worker memory."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from nubes.functions.policies.xfaas import PAPER
from nubes.functions.policies.xfaas_regions import Footprint, locality_groups, two_choices
from nubes.papers import Claim, Context, Result, above, at_least, at_most, reproduction
from nubes.papers.live import cloud, module
from nubes.papers.simulated import azure, words

if TYPE_CHECKING:
    from nubes.workloads.workload import Workload

DAY_S, HOUR_S = 86_400.0, 3_600.0
PEAK_TO_TROUGH, UTILISATION = 4.3, 0.66
RESIDENT_S = 600.0  # how long a worker keeps the code of a function it ran
CALLEE_RPS, CALLERS = 100.0, 3

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
    "median over workers and minutes of resident code bytes, groups / random routing",
    "a random worker for each call",
    at_most(0.9),
    "0.882 (11.8 % less)",
)
LATENCY = Claim(
    "At equal latency.",
    "mean time from arrival to end of a call, groups / random routing",
    "a random worker for each call",
    at_most(1.05),
    "equal",
)


@reproduction(
    PAPER,
    claims=(FLAT, STEEP, IN_TIME, PROMPT, GOODPUT, ERRORS, UNPROTECTED, MEMORY, LATENCY),
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
    make = azure(ctx, ctx.pick(100, 500))
    minutes = ctx.pick(60.0, 240.0)
    routed = [routing(make(seed).until(minutes * 60.0), seed) for seed in ctx.each("routing to workers")]
    workload = f"{words(make(0))} Its first {minutes:g} minutes, over workers of 8 slots at 66 % utilisation."
    yield ctx.result(MEMORY, [memory for memory, _ in routed], workload, "simulated")
    yield ctx.result(LATENCY, [latency for _, latency in routed], workload, "simulated")


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
        f"{len(at):,} calls drawn from {base.name}, durations scaled to a mean load of {cpus:g} CPUs, the longest "
        f"0.1 % cut; half of each function's calls are opportunistic; demand peaks at 4.3 times its trough (seed {seed})."
    )
    instant = (np.array([0.01]),) * len(specs)
    return replace(
        base, name="a day and another", source=source, specs=tuple(specs), arrival_s=at[order], function=function[order],
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
    done = [
        np.clip(np.minimum(ended_s, b) - np.maximum(started_s, a), 0.0, None)
        for a, b in zip(edges, edges[1:], strict=False)
    ]
    hours = [float(np.nansum(seconds)) for seconds in done]
    return max(hours) / max(min(hours), 1e-9)


# -- protection of callees -----------------------------------------------------------------------------------------

SERVICE = """
import http.server, sys, threading, time
rate, tokens, filled, lock = float(sys.argv[1]), 10.0, time.monotonic(), threading.Lock()

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        global tokens, filled
        with lock:
            now = time.monotonic()
            tokens, filled = min(10.0, tokens + (now - filled) * rate), now
            fine = tokens >= 1.0
            tokens -= fine
        self.send_response(200 if fine else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""

CALLER = """
import http.client, nubes
app = nubes.App("callers")
_service = []

class Refused(Exception):
    __nubes_backpressure__ = "service"

def call(port):
    if not _service:
        _service.append(http.client.HTTPConnection("127.0.0.1", port))
    _service[0].request("GET", "/")
    answer = _service[0].getresponse()
    answer.read()
    if answer.status == 503:
        raise Refused()
"""


def pushed(ctx: Context, queueing: str, seed: int, length_s: float, warm_s: float) -> tuple[float, float]:
    """(answered a second / capacity, refused / issued) between `warm_s` and `length_s`."""
    code = CALLER + "".join(
        f"\n@app.function(cpu=0.01)\ndef f{i}(port):\n    return call(port)\n" for i in range(CALLERS)
    )
    made = module(ctx.folder / "code", "nubes_callers", code)
    ends: list[tuple[float, bool]] = []

    async def one(at_s: float, function: Any, port: int, begun: float) -> None:
        await asyncio.sleep(max(0.0, begun + at_s - time.perf_counter()))
        try:
            await function.remote.aio(port)
            fine = True
        except made.Refused:
            fine = False
        ends.append((time.perf_counter() - begun, fine))

    async def push(port: int) -> None:
        begun = time.perf_counter()
        calls = [
            asyncio.ensure_future(one(n / CALLEE_RPS, getattr(made, f"f{i}"), port, begun))
            for n in range(int(length_s * CALLEE_RPS))
            for i in range(CALLERS)
        ]
        await asyncio.sleep(length_s)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    folder = ctx.folder / f"callers-{queueing.partition('(')[0]}-{seed}"
    with service(ctx.folder) as port, cloud(folder, queueing=queueing), made.app.run():
        asyncio.run(push(port))
    counted = [fine for at, fine in ends if warm_s <= at < length_s]
    answered = sum(counted)
    return answered / (length_s - warm_s) / CALLEE_RPS, 1.0 - answered / max(1, len(counted))


class service:
    """A process that answers `CALLEE_RPS` requests a second and refuses the rest; gives its port."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "service.py"

    def __enter__(self) -> int:
        self.path.write_text(SERVICE)
        argv = [sys.executable, str(self.path), str(CALLEE_RPS)]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


# -- locality ------------------------------------------------------------------------------------------------------


def routing(workload: Workload, seed: int, slots: int = 8, groups: int = 4) -> tuple[float, float]:
    """(median resident bytes, mean latency) of locality groups over random routing.

    Groups are made from the first third, where nothing is measured yet, as they would be from the past.
    """
    from nubes.kernel.rng import rng

    names = [spec.name for spec in workload.specs]
    busy = float(workload.exec_s.sum()) / workload.seconds
    workers = max(2 * groups, math.ceil(busy / UTILISATION / slots))
    past = workload.until(workload.seconds / 3.0)
    load = np.bincount(past.function, past.exec_s, minlength=len(names)) / past.seconds
    known = {n: Footprint(s.memory_bytes, float(c)) for n, s, c in zip(names, workload.specs, load, strict=True)}
    of = {name: group.workers for group in locality_groups(known, workers, groups) for name in group.functions}
    everyone = range(workers)
    draw = rng(seed, "routing")
    grouped = routed(workload, workers, slots, lambda f, left: two_choices(of[names[f]], left, draw))
    anywhere = routed(workload, workers, slots, lambda f, left: draw.choice(everyone))
    return grouped[0] / anywhere[0], grouped[1] / anywhere[1]


def routed(workload: Workload, workers: int, slots: int, choose: Any) -> tuple[float, float]:
    """(median over workers and minutes of resident bytes, mean latency); calls queue at their worker."""
    from heapq import heappop, heappush

    free = [[0.0] * slots for _ in range(workers)]
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
    return float(np.median(samples)), latency / max(1, count)
