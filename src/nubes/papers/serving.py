"""What the reproductions of LLM systems share: workloads, engines in virtual time, the highest rate they sustain."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nubes.kernel.errors import NotFound

if TYPE_CHECKING:
    from nubes.drivers.sim.llm import Served
    from nubes.llm.scheduling.load import StepModel
    from nubes.papers.context import Context
    from nubes.workloads.llm import LLMWorkload


def requests(ctx: Context, name: str, stand_in: str, seed: int, **options: Any) -> LLMWorkload:
    """The trace the user named, else `name` if that is at hand, else `stand_in`, a generator, with its own options."""
    from nubes.workloads.llm import load_llm

    if ctx.trace:
        return load_llm(ctx.trace, seed=seed, **options)
    try:
        return load_llm(name, seed=seed, **options)
    except NotFound:
        return load_llm(stand_in, seed=seed)


def served(workload: LLMWorkload, model: StepModel, tokens: int, *, instances: int = 1, **policies: Any) -> Served:
    """`workload` on engines with room for `tokens` of KV. Policies by seam; `retention="none"` if none is named.

    A model of several stages gets as many schedulers, one for each batch under way, that share the memory equally.
    """
    from nubes.drivers.sim.llm import Instance, pipelined, simulate_llm
    from nubes.llm.scheduling.scheduler import Scheduler

    policies.setdefault("retention", "none")
    size = policies.setdefault("block_size", 16)

    def make() -> Scheduler:
        return Scheduler(tokens // size // model.stages, **policies)

    made = [
        i for _ in range(instances) for i in (pipelined(model, make) if model.stages > 1 else [Instance(make(), model)])
    ]
    return simulate_llm(workload, made)


def capacity(sustains: Callable[[float], bool], low: float, high: float, steps: int = 7) -> float:
    """The highest rate that is sustained, by bisection on its logarithm; `low` if nothing above it is.

    The answer is exact to the `steps`-th halving of log(high / low). Neither end is tried: `low` would take longest.
    """
    for _ in range(steps):
        middle = (low * high) ** 0.5
        if sustains(middle):
            low = middle
        else:
            high = middle
    return low


def normalised_s(outcome: Served) -> float:
    """Mean over the requests of their latency divided by their output tokens."""
    import numpy as np

    per_token = outcome.latency_s / outcome.workload.output
    return float(np.mean(per_token)) if not np.isnan(per_token).any() else float("inf")


def tbt_s(outcome: Served, share: float = 0.99) -> float:
    """The time between tokens that this share of all tokens keep."""
    import numpy as np

    if not len(outcome.gaps_s):
        return 0.0
    order = np.argsort(outcome.gaps_s)
    upto = np.cumsum(outcome.gap_counts[order])
    return float(outcome.gaps_s[order][np.searchsorted(upto, share * upto[-1])])


def uniform(length_s: float, rate: float, seed: int, prompt: tuple[int, int], output: tuple[int, int]) -> LLMWorkload:
    """Requests whose lengths are drawn evenly from (least, most), arriving at random; 50 or more."""
    from nubes.workloads.draws import generator
    from nubes.workloads.llm import LLMWorkload
    from nubes.workloads.llm_synthetic import arrivals

    draw = generator(seed, "uniform")
    n = max(50, round(length_s * rate))
    when = arrivals(draw, rate, n)
    source = (
        f"prompts of {prompt[0]} to {prompt[1]} and outputs of {output[0]} to {output[1]} tokens, Poisson arrivals."
    )
    lengths = [draw.integers(low, high + 1, n) for low, high in (prompt, output)]
    return LLMWorkload("uniform", source, when, lengths[0], lengths[1], float(when[-1]))


def words(workload: LLMWorkload) -> str:
    """A workload in words."""
    return f"{workload.name}, {workload.requests:,} requests: {workload.source}"
