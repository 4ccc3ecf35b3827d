"""Punica: products of many adapters in one batch, live; requests packed onto few GPUs, in simulation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING, Any

from nubes.llm.policies.punica import PAPER
from nubes.papers import Claim, Context, Result, at_least, at_most, below, reproduction
from nubes.papers.adapters import Ask, many, throughput, zipf
from nubes.papers.generating import engine, missing, opened

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nubes.drivers.sim.llm import Instance
    from nubes.drivers.sim.llm.fleet import FleetServed
    from nubes.llm.lora.segments import Placed
    from nubes.llm.spec import Shape
    from nubes.workloads.llm import LLMWorkload

ROWS, RANK, HIDDEN = 32, 16, 576
BATCH = 16
POWER = 1.5  # of Zipf's law for the skewed popularity
MODEL = "lora(llama-2-7b,gpu=a100)"
FULL = 32  # requests that a GPU runs at most
GPUS = 16
PEAK = 40.0  # requests a second at the top of the ramp

EXACT = Claim("SGMV does what a product for each row does.", "largest error", "per-row products", at_most(1e-4))
BMM = Claim(
    "It beats gathering the weights for a batched product.",
    f"time of gather+BMM / SGMV, {ROWS} rows of different adapters, rank {RANK}, h = {HIDDEN}",
    "gather, then BMM (the faster of NumPy and PyTorch)",
    at_least(2.0),
)
LOOP = Claim(
    "And a loop over the adapters.",
    "time of the loop / SGMV, the same rows",
    "a Python loop (the faster of NumPy and PyTorch)",
    at_least(3.0),
)
GEMM = Claim(
    "For one adapter it is as good as a plain product.",
    "time of SGMV / two GEMMs, all rows of one adapter",
    "GEMM (NumPy's BLAS)",
    at_most(1.3),
)
ORDER = Claim(
    "Throughput falls with the number of adapters: Identical, Skewed, Uniform, Distinct.",
    "smallest ratio of one to the next in that order",
    "the next in order",
    at_least(1.0),
)
DISTINCT = Claim(
    "But not by much.",
    f"tokens/s at batch {BATCH}, Distinct / Identical",
    "identical adapters",
    at_least(0.70),
    "about equal (A100)",
)
ALONE = Claim(
    "One adapter at a time collapses when all are distinct.",
    f"tokens/s at batch {BATCH}, Punica / one adapter at a time, Distinct",
    "one-adapter",
    at_least(5.0),
    "12 times",
)
HOURS = Claim(
    "Packing requests onto the largest batch needs fewer GPUs.",
    "GPU-hours of the largest-batch placement / least-loaded, the same rule for starting and stopping GPUs",
    "least-loaded",
    at_most(0.8),
)
LATENCY = Claim(
    "At the same speed.",
    "P99 over requests of the time per token, largest-batch / least-loaded",
    "least-loaded",
    at_most(1.1),
    "about 2 ms more per token",
)
HALF = Claim(
    "Consolidation leaves fewer half-empty GPUs while load falls.",
    f"mean number of GPUs with 1 to {FULL // 2 - 1} requests in the second half, with / without",
    "no migration",
    below(1.0),
)
KERNEL, SERVED, CLUSTER = (EXACT, BMM, LOOP, GEMM), (ORDER, DISTINCT, ALONE), (HOURS, LATENCY, HALF)
CLAIMS = (*KERNEL, *SERVED, *CLUSTER)


@reproduction(PAPER, claims=CLAIMS, area="llm", seam="batching, routing, migration, scaling", mode="both")
def run(ctx: Context) -> Iterator[Result]:
    """The kernel by itself, the engine with a real model, and a cluster in virtual time."""
    yield from kernel(ctx)
    why = missing()
    if why:
        yield from ctx.all_unmeasured(SERVED, why, "live")
    else:
        yield from served(ctx)
    yield from cluster(ctx)


# -- the kernel -------------------------------------------------------------------------------------------------------


def kernel(ctx: Context) -> Iterator[Result]:
    from nubes.llm.runtime.build import NoCompiler, library

    try:
        library()
    except NoCompiler as error:
        yield from ctx.all_unmeasured(KERNEL, str(error), "live")
        return
    values: dict[Claim, list[float]] = {claim: [] for claim in KERNEL}
    for seed in ctx.each("the kernel"):
        errors, times = products(seed, ctx.pick(300, 2000))
        values[EXACT].append(errors)
        values[BMM].append(min(times["bmm"], times["torch bmm"]) / times["distinct"])
        values[LOOP].append(min(times["loop"], times["torch loop"]) / times["distinct"])
        values[GEMM].append(times["identical"] / times["gemm"])
    about = f"x [{ROWS}, {HIDDEN}], adapters in fp16 pages from anywhere (the others' in fp32); the best of many calls."
    for claim in KERNEL:
        yield ctx.result(claim, values[claim], about, "live")


def products(seed: int, times: int) -> tuple[float, dict[str, float]]:
    """The largest error over random segmentations, and seconds of each way to compute."""
    import numpy as np

    from nubes.llm.lora.adapter import TARGETS
    from nubes.llm.lora.segments import Placed, segments
    from nubes.llm.runtime import memory
    from nubes.llm.runtime.adapted import Product
    from nubes.llm.spec import Shape

    shape = Shape(layers=1, hidden=HIDDEN, heads=9, kv_heads=3, head_dim=64, ffn=32, vocab=32, context=64)
    draw = np.random.default_rng(seed)
    adapters = many(shape, [RANK] * ROWS, seed, np.float16)
    values = 2 * 3 * 16 * 64
    per = adapters[0].blocks(values)
    pool: NDArray[Any] = memory.zeros((per * ROWS, values), np.float16)
    free = draw.permutation(len(pool)).tolist()
    placed: list[Placed] = []
    for adapter in adapters:
        blocks = [free.pop() for _ in range(per)]
        for nth, block in enumerate(blocks):
            piece = adapter.piece(nth, values)
            pool[block, : piece.size] = piece
        placed.append(Placed(adapter, blocks, values))
    q = TARGETS.index("q_proj")
    pairs = [adapter.matrices(0)["q_proj"] for adapter in adapters]
    down = np.stack([a.T for a, _ in pairs])
    up = np.stack([adapter.scale * b.T for adapter, (_, b) in zip(adapters, pairs, strict=True)])
    x, y = draw.standard_normal((ROWS, HIDDEN)).astype(np.float32), np.zeros((ROWS, HIDDEN), np.float32)
    worst = 0.0
    for _ in range(20):
        counts = np.diff(np.unique([0, ROWS, *draw.integers(0, ROWS, 6).tolist()])).tolist()
        which = draw.integers(0, ROWS, len(counts)).tolist()
        of = segments([placed[n] for n in which], counts)
        assert of is not None
        got = np.zeros_like(y)
        with Product(shape, pool, of, ROWS) as product:
            product.run(0, q, x, got)
        owner = np.repeat(which, counts)
        want = np.stack([x[row] @ down[n] @ up[n] for row, n in enumerate(owner)])
        worst = max(worst, float(np.abs(got - want).max()))
    order = draw.permutation(ROWS)
    took = others(order, down, up, x, y, times)
    for name, owners, counts in (
        ("distinct", [placed[n] for n in order], [1] * ROWS),
        ("identical", placed[:1], [ROWS]),
    ):
        of = segments(owners, counts)
        assert of is not None
        took[name] = min(alone(shape, pool, of, x, y, threads, times) for threads in (1, 2))
    return worst, took


def alone(shape: Shape, pool: Any, of: Any, x: Any, y: Any, threads: int, times: int) -> float:
    from nubes.llm.runtime.adapted import Product

    with Product(shape, pool, of, len(x), threads) as product:
        return best(lambda: product.run(0, 0, x, y), times)


def others(order: Any, down: Any, up: Any, x: Any, y: Any, times: int) -> dict[str, float]:
    """Seconds of the ways that Punica is compared with; weights are in one array of all adapters."""
    import numpy as np

    def bmm() -> None:
        y[:] += np.matmul(np.matmul(x[:, None], down[order]), up[order])[:, 0]

    def loop() -> None:
        for row, n in enumerate(order):
            y[row] += x[row] @ down[n] @ up[n]

    def gemm() -> None:
        y[:] += x @ down[0] @ up[0]

    took = {"bmm": best(bmm, times), "loop": best(loop, times), "gemm": best(gemm, times)}
    took["torch bmm"] = took["torch loop"] = float("inf")
    try:
        import torch
    except ImportError:
        return took
    tx, ty, tdown, tup, which = (torch.from_numpy(array) for array in (x, y.copy(), down, up, order))

    def torch_bmm() -> None:
        ty.add_(torch.bmm(torch.bmm(tx.unsqueeze(1), tdown[which]), tup[which]).squeeze(1))

    def torch_loop() -> None:
        for row, n in enumerate(order):
            ty[row] += tx[row] @ tdown[n] @ tup[n]

    took["torch bmm"], took["torch loop"] = best(torch_bmm, times), best(torch_loop, times // 4)
    return took


def best(call: Callable[[], None], times: int) -> float:
    """The shortest of so many calls, in seconds."""
    least = float("inf")
    for _ in range(times):
        begun = perf_counter()
        call()
        least = min(least, perf_counter() - begun)
    return least


# -- the engine -------------------------------------------------------------------------------------------------------


def served(ctx: Context) -> Iterator[Result]:
    import numpy as np

    count = ctx.pick(48, 256)
    values: dict[Claim, list[float]] = {claim: [] for claim in SERVED}
    for seed in ctx.each("the engine"):
        checkpoint, runtime = opened("int8", 8_000)
        adapters = many(checkpoint.shape, [RANK] * count, seed, runtime.slots.dtype)
        draw = np.random.default_rng(seed)
        settings = {
            "identical": [0] * count,
            "skewed": zipf(draw, count, count, POWER).tolist(),
            "uniform": draw.integers(0, round(count**0.5), count).tolist(),
            "distinct": list(range(count)),
        }
        outputs = draw.integers(16, 49, count).tolist()
        prompts = draw.integers(16, 65, count).tolist()

        def speed(
            who: Sequence[int],
            batching: str,
            lengths: Any = (prompts, outputs),
            on: Any = (checkpoint, runtime, adapters, seed),
        ) -> float:
            checkpoint, runtime, adapters, seed = on
            asks = [Ask(prompt, output, f"a{n}") for prompt, output, n in zip(*lengths, who, strict=True)]
            with engine(checkpoint, runtime, batching=batching) as made:
                for adapter in adapters:
                    made.store.add(adapter)
                return throughput(made, asks, seed)

        rates = dict.fromkeys(settings, 0.0)
        for _ in range(ctx.pick(2, 5)):  # the best of each, in turns
            for name, who in settings.items():
                rates[name] = max(rates[name], speed(who, f"punica(max_seqs={BATCH})"))
        ranked = list(rates.values())
        values[ORDER].append(min(a / b for a, b in pairwise(ranked)))
        values[DISTINCT].append(rates["distinct"] / rates["identical"])
        ctx.say("one adapter at a time")
        values[ALONE].append(rates["distinct"] / speed(settings["distinct"], f"one-adapter(max_seqs={BATCH})"))
        runtime.close()
    about = (
        f"smollm2-135m in int8 on this machine's cores, rank {RANK} on q, k, v and o; {count} requests at once, "
        f"16 to 64 tokens in and 16 to 48 out. Skewed: Zipf {POWER:g}; uniform: {round(count**0.5)} adapters."
    )
    for claim in SERVED:
        yield ctx.result(claim, values[claim], about, "live")


# -- the cluster ------------------------------------------------------------------------------------------------------


def cluster(ctx: Context) -> Iterator[Result]:
    import numpy as np

    hours: list[float] = []
    latency: list[float] = []
    half: list[float] = []
    length_s = ctx.pick(300.0, 3600.0)
    workload = ramp(ctx, length_s, 0)
    for seed in ctx.each(f"{GPUS} GPUs"):
        workload = ramp(ctx, length_s, seed)
        packed, few = fleet(workload, "punica", "punica")
        spread, _ = fleet(workload, "least-loaded", "none")
        stays, many_half = fleet(workload, "punica", "none")
        assert stays.refused == packed.refused == spread.refused == 0
        hours.append(packed.engine_s / spread.engine_s)
        latency.append(float(np.percentile(packed.served.tpot_s, 99) / np.percentile(spread.served.tpot_s, 99)))
        half.append(few / many_half if many_half else float("inf"))
    about = (
        f"{workload.source} {MODEL}, at most {FULL} requests on each of up to {GPUS} GPUs; a GPU takes 20 s to start; "
        "one is added when none is below three quarters of a full batch, and released when idle."
    )
    yield ctx.result(HOURS, hours, about, "simulated")
    yield ctx.result(LATENCY, latency, about, "simulated")
    yield ctx.result(HALF, half, about, "simulated")


def ramp(ctx: Context, length_s: float, seed: int) -> LLMWorkload:
    """Chat lengths; a rate that rises evenly to its peak and falls again; adapters by Zipf's law."""
    from dataclasses import replace

    import numpy as np

    from nubes.papers.serving import requests

    count = round(PEAK / 2 * length_s)
    base = requests(
        ctx, "sharegpt", f"chat-like(rate={PEAK},length={1.5 * count / PEAK}s,limit=2048,turns=1)", seed, rate=PEAK,
        limit=2048, n=count,
    )  # fmt: skip
    draw = np.random.default_rng((seed, 5))
    n = min(count, base.requests)
    place = np.sort(draw.random(n))
    when = length_s * np.where(place < 0.5, np.sqrt(place / 2), 1 - np.sqrt((1 - place) / 2))
    return replace(
        base.taking(np.arange(n)), arrival_s=when, seconds=length_s, session=None, think_s=None, blocks=None,
        adapter=zipf(draw, 500, n, POWER),
        source=f"{base.name}: {n:,} requests in {length_s:g} s, up to {PEAK:g} a second and down again, 500 adapters "
        f"of rank {RANK} by Zipf's law ({POWER:g}).",
    )  # fmt: skip


def fleet(workload: LLMWorkload, routing: str, migration: str) -> tuple[FleetServed, float]:
    """What became of it, and the mean number of half-empty GPUs in the second half."""
    from nubes.drivers.sim.llm import Instance
    from nubes.drivers.sim.llm.fleet import Hardware, simulate_fleet
    from nubes.llm.cluster.fleet import Fleet
    from nubes.llm.models import step_model
    from nubes.llm.models.facts import llm_facts
    from nubes.llm.models.lora import blocks_of
    from nubes.llm.scheduling.scheduler import Scheduler

    model = step_model(MODEL)
    sizes = dict.fromkeys(map(str, range(500)), blocks_of(llm_facts("llama-2-7b"), RANK))
    instances: list[Instance] = []
    counts: list[int] = []
    due = workload.seconds / 2

    def make(number: int) -> Instance:
        scheduler = Scheduler(
            model.kv_tokens // 16, batching=f"punica(max_seqs={FULL})", retention="none", adapters=sizes
        )
        instances.append(Instance(scheduler, model, 16 * model.kv_bytes / 16e9))
        return instances[-1]

    def watch(instance: Instance, now: float) -> None:
        nonlocal due
        while due <= now and due < workload.seconds:
            counts.append(sum(1 for each in instances if 0 < each.scheduler.state.running < FULL // 2))
            due += workload.seconds / 1000

    made = Fleet(
        routing=f"{routing}(most={FULL})" if routing == "punica" else routing, migration=migration,
        scaling=f"punica(most={FULL},limit={GPUS})",
    )  # fmt: skip
    outcome = simulate_fleet(workload, made, Hardware(make, watch=watch))
    return outcome, sum(counts) / len(counts)
