"""SpecInfer: token trees verified in one step, against one guess after the other and none at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

from nubes.llm.policies.specinfer import PAPER
from nubes.papers import Claim, Context, Result, below, between, reproduction, specinfer_live
from nubes.papers.serving import requests, words

if TYPE_CHECKING:
    from nubes.llm.scheduling.load import Load, StepModel
    from nubes.workloads.llm import LLMWorkload

TREE = "specinfer(widths=1x1x3x1x1x1x1x1)"  # the paper's
TOP = (0.68, 0.9)  # how often the model's token is the draft's first, and among its first five: the paper's
DEPTH = 8
TAB = "tab(llama-2-70b,gpu=a100,tp=8)"
BATCHES = (1, 2, 4)
LEVEL_S = 1e-3  # of a draft of two layers (LLaMA-68M), beside the model: assumed
OFFLOADED = "opt-13b"
LEVEL_BESIDE_S = 5e-3  # of a draft of twelve layers (OPT-125M) on the slower device: assumed
FLOPS_SHARE = 0.4  # of the peak that matrices reach

OFFLOAD = Claim(
    "Where weights come over the host's link for every pass, guesses are nearly free.",
    "time per output token, incremental decoding / trees, one request at a time",
    "off",
    between(2.6, 3.5),
    "2.6 to 3.5 times (FlexGen, OPT-13B and OPT-30B on an A10)",
)
LEAST = Claim(
    "Distributed inference is faster too.",
    "time per output token, incremental decoding / trees, the smallest of 1, 2 and 4 requests at a time",
    "off",
    between(1.5, 2.8),
    "1.5 to 2.8 times (LLaMA-65B on two nodes)",
)
MOST = Claim(
    "By no more than the paper says.",
    "time per output token, incremental decoding / trees, the largest of 1, 2 and 4 requests at a time",
    "off",
    between(1.5, 2.8),
    "1.5 to 2.8 times (LLaMA-65B on two nodes)",
)
SHRINKS = Claim(
    "The gain shrinks as batches fill the device.",
    "that ratio for so many requests at a time / for half as many, the larger of 2 and 4",
    "off",
    below(1.0),
)
CLAIMS = (OFFLOAD, LEAST, MOST, SHRINKS, *specinfer_live.CLAIMS)


@reproduction(PAPER, claims=CLAIMS, area="llm", seam="speculation", mode="both")
def run(ctx: Context) -> Iterator[Result]:
    """Published hit rates in virtual time, then the engine itself."""
    yield from offloaded(ctx)
    yield from distributed(ctx)
    yield from specinfer_live.run(ctx)


def hits() -> list[list[float]]:
    """Of every depth by rank: each rank after the first takes half of what the one before took."""
    first, five = TOP
    return [[first, *((five - first) * share / 15 for share in (8, 4, 2, 1))]]


@dataclass(frozen=True, slots=True)
class Streamed:
    """A model whose weights come from host memory for every pass, while it computes."""

    name: str
    stream_s: float
    row_s: float
    kv_tokens: int
    kv_bytes: int
    weight_bytes: int
    gpu: str
    devices: int = 1
    stages: int = 1

    def seconds(self, load: Load) -> float:
        return max(self.stream_s, self.row_s * load.rows)

    def describe(self) -> str:
        return f"{self.name}: weights over the host's link for every pass, {self.stream_s:.3g} s; computing meanwhile."


def offloaded(ctx: Context) -> Iterator[Result]:
    """One request at a time."""
    from nubes.llm.models import gpu_facts, llm_facts

    llm, gpu = llm_facts(OFFLOADED), gpu_facts("a10")
    model = Streamed(
        f"{OFFLOADED} offloaded", llm.weight_bytes / gpu.host_link, 2 * llm.parameters / (FLOPS_SHARE * gpu.flops),
        16_384, llm.kv_bytes, llm.weight_bytes, gpu.name,
    )  # fmt: skip
    ratios = []
    for seed in ctx.each("weights in host memory"):
        workload = offered(ctx, seed)
        ratios.append(ratio(model, workload, 1, LEVEL_BESIDE_S, seed))
    about = f"{said(workload)} {model.describe()} {assumed(LEVEL_BESIDE_S)}"
    yield ctx.result(OFFLOAD, ratios, about, "simulated")


def distributed(ctx: Context) -> Iterator[Result]:
    """Few requests at a time on eight devices."""
    from nubes.kernel.errors import NotFound
    from nubes.llm.models import step_model

    claims = (LEAST, MOST, SHRINKS)
    try:
        model = step_model(TAB)
    except NotFound as error:
        yield from ctx.all_unmeasured(claims, str(error), "simulated")
        return
    found = []
    for seed in ctx.each("batches of 1, 2 and 4"):
        workload = offered(ctx, seed)
        found.append([ratio(model, workload, batch, LEVEL_S, seed) for batch in BATCHES])
    each = ", ".join(f"{median(of):.2f}" for of in zip(*found, strict=True))
    about = f"{said(workload)} {model.describe()} {assumed(LEVEL_S)} Batches of 1, 2, 4: {each}."
    values = (
        [min(of) for of in found],
        [max(of) for of in found],
        [max(b / a for a, b in pairwise(of)) for of in found],
    )
    for claim, measured in zip(claims, values, strict=True):
        yield ctx.result(claim, measured, about, "simulated")


def offered(ctx: Context, seed: int) -> LLMWorkload:
    """Real chat lengths, all there from the start."""
    import numpy as np

    count, limit = ctx.pick(40, 400), 1024
    workload = requests(
        ctx, "sharegpt", f"chat-like(limit={limit},rate=1,length={2 * count}s)", seed, limit=limit, n=4 * count
    )
    index = np.flatnonzero(workload.output > DEPTH)[:count]
    return workload.taking(index, arrival_s=np.zeros(len(index)), seconds=0.0)


def ratio(model: StepModel, workload: LLMWorkload, batch: int, level_s: float, seed: int) -> float:
    """Mean time per output token without guesses / with."""
    import numpy as np

    from nubes.drivers.sim.llm import Instance, simulate_llm
    from nubes.drivers.sim.llm.guessing import Guessing
    from nubes.kernel.rng import rng
    from nubes.llm.scheduling.scheduler import Scheduler

    def token_s(speculation: str) -> float:
        scheduler = Scheduler(
            model.kv_tokens // 16, batching=f"vllm(max_seqs={batch})", retention="none", speculation=speculation
        )
        guessing = Guessing(hits(), level_s, rng(seed, "guesses"))
        return float(np.mean(simulate_llm(workload, [Instance(scheduler, model, guessing=guessing)]).tpot_s))

    return token_s("off") / token_s(TREE)


def said(workload: LLMWorkload) -> str:
    return f"{words(workload)}, all there from the start."


def assumed(level_s: float) -> str:
    first, five = TOP
    return (
        f"Of the draft's guesses the first is right {first:.0%} of the time and one of five {five:.0%} (as published); "
        f"a level of drafting takes {level_s * 1e3:g} ms (assumed); tree <1,1,3,1,1,1,1,1>."
    )
