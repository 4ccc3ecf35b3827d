"""SEUSS: starts from the deepest snapshot that fits, and thousands of parked functions that share their pages."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from statistics import mean, median
from types import ModuleType

from nubes.client import Client
from nubes.functions.policies.seuss import PAPER
from nubes.papers import Claim, Context, Result, at_least, at_most, below, reproduction
from nubes.papers.live import cloud, memory_bytes, module, settle, timed

SEUSS, UNPRIMED = "seuss(runtime=numpy)", "sand(runtime=numpy)"  # SAND's tree is this one without priming
FRESH = "a fresh process for each start"
ROUNDS = 20

WARM = Claim(
    "A warm start is far shorter than a fresh one.", "median latency, warm / fresh", FRESH, at_most(1 / 20), "3.5 ms"
)
HOT = Claim(
    "A hot one is shorter still.", "median latency, hot / warm", "the warm path", at_most(1 / 3), "0.8 ms / 3.5 ms"
)
ORDER = Claim(
    "The deeper the snapshot, the shorter the start: hot < warm < cold < fresh.",
    "largest of the three ratios of median latencies between neighbours",
    FRESH,
    below(1.0),
    "0.8 ms, 3.5 ms, 7.5 ms",
)
DENSITY = Claim(
    "Parked functions are far denser than idle processes.",
    "private memory of an idle process with the same imports / of a parked function",
    "one idle process per function",
    at_least(8.0),
    "16 (50,000 against 3,000)",
)
THROUGHPUT = Claim(
    "Calls that are all to new functions are answered far faster.",
    "functions deployed and called once a second by 4 clients, SEUSS / fresh",
    FRESH,
    at_least(10.0),
    "51",
)
PRIMED = Claim(
    "Priming pays: without it, first calls of warm clones are slower.",
    "median latency of a warm start, not primed / primed",
    "the same tree without priming",
    at_least(1.2),
)

CODE = """
import numpy as np
import nubes
app = nubes.App("{name}")

def made(i):
    def small(x):
        return float(np.full(8, x + i).sum())
    return small

for i in range({count}):
    app.function(name=f"f{{i}}", serialized=True, cpu=0.001, memory="1MiB")(made(i))
"""


@reproduction(
    PAPER,
    claims=(WARM, HOT, ORDER, DENSITY, THROUGHPUT, PRIMED),
    area="functions",
    seam="cold-start",
    mode="live",
)
def run(ctx: Context) -> Iterator[Result]:
    """Small functions that share numpy: four paths, density, all-new load, priming."""
    paths = [latencies(ctx, seed) for seed in ctx.each("hot, warm, cold and fresh starts")]
    about = f"a function that imports numpy, {ROUNDS} starts of each kind; cold includes its deployment"
    yield ctx.result(WARM, [warm / fresh for _, warm, _, fresh in paths], about)
    yield ctx.result(HOT, [hot / warm for hot, warm, _, _ in paths], about)
    yield ctx.result(ORDER, [max(a / b for a, b in pairwise(path)) for path in paths], about)
    count = ctx.pick(60, 500)
    dense = [density(ctx, seed, count) for seed in ctx.each(f"parking {count} functions")]
    yield ctx.result(DENSITY, dense, f"{count} parked functions that share numpy")
    few = ctx.pick(16, 100)
    rates = [
        throughput(ctx, seed, SEUSS, count) / throughput(ctx, seed, "fresh", few) for seed in ctx.each("new functions")
    ]
    yield ctx.result(THROUGHPUT, rates, f"{count} functions under SEUSS, {few} fresh, each called once, 4 clients")
    primed = [unprimed(ctx, seed) for seed in ctx.each("priming off")]
    yield ctx.result(PRIMED, primed, f"a function that imports numpy, {ROUNDS} warm starts of each kind")


def functions(ctx: Context, name: str, count: int) -> ModuleType:
    """A module with that many small functions, each with code of its own."""
    return module(ctx.folder / "code", f"nubes_{name}", CODE.format(name=name, count=count))


def call(made: ModuleType, i: int) -> float:
    return float(made.app.functions[f"f{i}"].remote(1))


def parked(client: Client, count: int) -> list[dict[str, object]]:
    """The functions' parents, once all are ready."""

    def ready(status: dict[str, list[dict[str, object]]]) -> bool:
        return sum(bool(one["ready"] and one["function"]) for one in status["parents"]) >= count

    status = settle(client, ready, timeout_s=600.0)
    return [one for one in status["parents"] if one["ready"] and one["function"]]


def latencies(ctx: Context, seed: int) -> tuple[float, float, float, float]:
    """Median seconds of a call that is hot, warm, cold (deployment included) and fresh."""
    with cloud(ctx.folder / f"fresh-{seed}", cold_start="fresh", keep_alive="sand"):
        made = functions(ctx, "fresh", 1)
        with made.app.run():
            call(made, 0)
            fresh = median(timed(lambda: call(made, 0)) for _ in range(ROUNDS // 2))
    with cloud(ctx.folder / f"paths-{seed}", cold_start=SEUSS, keep_alive="sand") as client:
        made = functions(ctx, "warm", 1)
        with made.app.run():
            parked(client, 1)
            warm = median(timed(lambda: call(made, 0)) for _ in range(ROUNDS))
            cold = median(new(ctx, n) for n in range(ROUNDS))
            client.ask("set_policy", seam="keep-alive", policy="no-unload")
            call(made, 0)
            hot = median(timed(lambda: call(made, 0)) for _ in range(10 * ROUNDS))
    return hot, warm, cold, fresh


def new(ctx: Context, n: int) -> float:
    """Seconds to deploy a function and to have its first answer."""
    made = functions(ctx, f"new{n}", 1)

    def both() -> None:
        with made.app.run():
            call(made, 0)

    return timed(both)


def density(ctx: Context, seed: int, count: int) -> float:
    """Private bytes of an idle process over those of a parked function."""
    made = functions(ctx, "dense", count)
    with cloud(ctx.folder / f"dense-{seed}", cold_start=SEUSS, keep_alive="sand") as client, made.app.run():
        nodes = [private_bytes(one["pid"]) for one in parked(client, count)]
    made = functions(ctx, "idle", 4)
    with cloud(ctx.folder / f"idle-{seed}", cold_start="fresh", keep_alive="no-unload") as client, made.app.run():
        for i in range(4):
            call(made, i)
        idle = [private_bytes(one["pid"]) for one in client.ask("status")["instances"]]
    return mean(idle) / mean(nodes)


def private_bytes(pid: object) -> int:
    assert isinstance(pid, int)
    return memory_bytes(pid, "Private_Clean", "Private_Dirty")


def throughput(ctx: Context, seed: int, policy: str, count: int) -> float:
    """Functions a second that 4 clients get answers of, each called once, their deployment included."""
    made = functions(ctx, "all_new", count)
    folder = ctx.folder / f"all-new-{policy.partition('(')[0]}-{seed}"
    with cloud(folder, cold_start=policy, keep_alive="sand"), ThreadPoolExecutor(4) as clients:
        warm_up = functions(ctx, "first", 1)
        with warm_up.app.run():
            call(warm_up, 0)

        def everything() -> None:
            with made.app.run():
                list(clients.map(lambda i: call(made, i), range(count)))

        return count / timed(everything)


def unprimed(ctx: Context, seed: int) -> float:
    """Latency of a warm start without priming over with it, taken in turn."""
    found = []
    for policy in (UNPRIMED, SEUSS):
        made = functions(ctx, "primed", 1)
        folder = ctx.folder / f"primed-{policy.partition('(')[0]}-{seed}"
        with cloud(folder, cold_start=policy, keep_alive="sand") as client, made.app.run():
            parked(client, 1)
            found.append(median(timed(lambda made=made: call(made, 0)) for _ in range(2 * ROUNDS)))  # type: ignore[misc]
    return found[0] / found[1]
