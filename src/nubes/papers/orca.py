"""Orca: batches that change with every iteration against batches that stay, on a pipeline of GPUs and in the engine."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from nubes.llm.policies.orca import PAPER
from nubes.papers import Claim, Context, Result, above, at_least, orca_live, reproduction
from nubes.papers.serving import capacity, served, uniform

if TYPE_CHECKING:
    from nubes.drivers.sim.llm import Served
    from nubes.llm.scheduling.load import StepModel
    from nubes.workloads.llm import LLMWorkload

MODEL = "opt(opt-66b,tp=8,pp=4)"
PROMPT, OUTPUT = (32, 512), (1, 128)  # uniform
MAX_LEN = PROMPT[1] + OUTPUT[1]
SLOWER = 2.0  # times the latency of an unloaded engine: the paper compares at 190 ms a token, twice the least
KINDS = {  # the largest batches tried of each, the best of which counts
    "orca": [f"orca(reserve=max,max_len={MAX_LEN},max_seqs={n})" for n in (32, 128)],
    "alone": [f"orca(reserve=max,max_len={MAX_LEN},max_seqs={n},selective=false)" for n in (4, 32)],
    "static": [f"static(reserve=max,max_len={MAX_LEN},max_seqs={n},micro=4)" for n in (8, 32, 128)],
}
VARIANTS = {
    "eight": [f"static(reserve=max,max_len={MAX_LEN},max_seqs=8,micro=4)"],
    "apart": [f"static(reserve=max,max_len={MAX_LEN},max_seqs={n})" for n in (8, 32)],
}

OVER_STATIC = Claim(
    "Scheduling by iteration sustains a rate an order of magnitude higher.",
    "highest rate with a median normalised latency of at most twice an unloaded engine's, iterations / request-level",
    "static",
    at_least(10.0),
    "36.9 times (GPT-3 175B, 190 ms a token)",
)
ALONE_STATIC = Claim(
    "Part of that is batches that change with every iteration, even if only equal lengths go together.",
    "the same rate, iterations without selective batching / request-level",
    "static",
    above(1.0),
)
OVER_ALONE = Claim(
    "The rest is selective batching.",
    "the same rate, iterations with / without selective batching",
    "orca(selective=false)",
    above(1.0),
)
CLAIMS = (OVER_STATIC, ALONE_STATIC, OVER_ALONE, *orca_live.CLAIMS)


@reproduction(PAPER, claims=CLAIMS, area="llm", seam="batching", mode="both")
def run(ctx: Context) -> Iterator[Result]:
    """Rates by bisection on a pipeline of four stages; each kind with the largest batch that suits it best."""
    from nubes.llm.models import step_model

    model = step_model(MODEL)
    length_s = ctx.pick(200.0, 1000.0)
    rates: dict[str, list[float]] = {kind: [] for kind in (*KINDS, *VARIANTS)}

    def sustains(policy: str, seed: int, bound_s: float, rate: float) -> bool:
        return normalised_s(simulated(uniform(length_s, rate, seed, PROMPT, OUTPUT), model, policy)) <= bound_s

    for seed in ctx.each("the highest rates"):
        bound_s = SLOWER * normalised_s(simulated(uniform(5000.0, 0.01, seed, PROMPT, OUTPUT), model, KINDS["orca"][0]))
        for kind, policies in (*KINDS.items(), *VARIANTS.items()):
            rates[kind].append(max(capacity(partial(sustains, p, seed, bound_s), 0.1, 100.0, 9) for p in policies))
    middle = {kind: median(of) for kind, of in rates.items()}
    about = (
        f"{uniform(length_s, 1.0, 0, PROMPT, OUTPUT).source} {length_s:g} s at each rate. {MODEL}: four stages, each "
        "batch in flight with an engine and a fourth of the memory of its own; every kind with the size of batch that "
        "suits it best. Request-level: one batch, padded to its longest prompt, in four micro-batches without bubbles, "
        f"{middle['static']:.3g} requests/s (at most 8 in a batch: {middle['eight']:.3g}; four batches, each renewed "
        f"on its own: {middle['apart']:.3g}). Without selective batching every length is a pass of its own, one after "
        f"the other: {middle['alone']:.3g}. With: {middle['orca']:.3g}; the paper's ratio would be "
        f"{36.9 * middle['static']:.3g}."
    )
    for claim, one, other in (
        (OVER_STATIC, "orca", "static"), (ALONE_STATIC, "alone", "static"), (OVER_ALONE, "orca", "alone")
    ):  # fmt: skip
        yield ctx.result(claim, [a / b for a, b in zip(rates[one], rates[other], strict=True)], about, "simulated")
    yield from orca_live.run(ctx)


def simulated(workload: LLMWorkload, model: StepModel, policy: str) -> Served:
    from nubes.drivers.sim.llm import Instance, simulate_llm
    from nubes.llm.scheduling.scheduler import Scheduler

    if "micro" in policy:
        scheduler = Scheduler(model.kv_tokens // 16, batching=policy, retention="none")
        return simulate_llm(workload, [Instance(scheduler, model)])
    return served(workload, model, model.kv_tokens, batching=policy)


def normalised_s(outcome: Served) -> float:
    """Median over the requests of their latency divided by their output tokens."""
    import numpy as np

    return float(np.median(outcome.latency_s / outcome.workload.output))
