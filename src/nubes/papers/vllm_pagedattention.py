"""PagedAttention: KV memory in pages against memory reserved ahead, in simulation on a profiled A100."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from nubes.llm.policies.vllm import PAPER
from nubes.papers import Claim, Context, Result, at_least, at_most, reproduction
from nubes.papers.serving import capacity, normalised_s, requests, served, words

if TYPE_CHECKING:
    from nubes.drivers.sim.llm import Instance, Served
    from nubes.workloads.llm import LLMWorkload

SLOTS = 15_700  # tokens of KV: 12 GB of an A100-40GB at 0.8 MB a token
MAX_LEN = 2048
BOUND_S = 0.1  # mean normalised latency that counts as sustained, a token
RULES = {
    "max": f"orca(reserve=max,max_len={MAX_LEN})",
    "pow2": "orca(reserve=pow2)",
    "oracle": "orca(reserve=oracle)",
    "paged": "vllm",
}

OVER_MAX = Claim(
    "Pages sustain a higher rate than reserving the longest length.",
    "highest rate with a mean normalised latency of at most 0.1 s a token, paged / Orca (Max)",
    "orca(reserve=max)",
    at_least(3.0),
    "2.7 to 8 times",
)
OVER_ORACLE = Claim(
    "Even than reserving exactly what will be used.",
    "the same rate, paged / Orca (Oracle)",
    "orca(reserve=oracle)",
    at_least(1.25),
    "1.7 to 2.7 times",
)
USE_MAX = Claim(
    "Reserving the longest length leaves most of the memory unused.",
    "share of KV memory that holds tokens, Orca (Max) under overload",
    "none",
    at_most(0.25),
    "20.4 %",
)
USE_PAGED = Claim(
    "Pages waste little.",
    "share of KV memory that holds tokens, paged under overload",
    "none",
    at_least(0.85),
    "over 96 %",
)
CLAIMS = (OVER_MAX, OVER_ORACLE, USE_MAX, USE_PAGED)


@reproduction(PAPER, claims=CLAIMS, area="llm", seam="batching, preemption", mode="simulated")
def run(ctx: Context) -> Iterator[Result]:
    """Rates by bisection, then the use of memory when there is always somebody waiting."""
    from nubes.llm.models import step_model

    count = ctx.pick(600, 2000)
    model = step_model("opt(opt-13b,tp=1)")
    rates: dict[str, list[float]] = {rule: [] for rule in RULES}
    use: dict[str, list[float]] = {rule: [] for rule in RULES}
    workload = offered(ctx, count, 0, 1.0)

    def sustains(rule: str, seed: int, rate: float) -> bool:
        outcome = served(offered(ctx, count, seed, rate), model, SLOTS, batching=RULES[rule])
        return normalised_s(outcome) <= BOUND_S

    for seed in ctx.each("the highest rates"):
        for rule in RULES:
            rates[rule].append(capacity(partial(sustains, rule, seed), 0.25, 8.0))
            use[rule].append(held(ctx, rule, seed, count))
    about = f"{words(workload)} opt-13b on an A100 with room for {SLOTS:,} tokens of KV."
    yield ctx.result(OVER_MAX, [a / b for a, b in zip(rates["paged"], rates["max"], strict=True)], about)
    yield ctx.result(OVER_ORACLE, [a / b for a, b in zip(rates["paged"], rates["oracle"], strict=True)], about)
    yield ctx.result(USE_MAX, use["max"], about)
    yield ctx.result(USE_PAGED, use["paged"], about)


def offered(ctx: Context, count: int, seed: int, rate: float) -> LLMWorkload:
    """Real chat lengths that fit the model, arriving at random."""
    options = {"rate": rate, "limit": MAX_LEN, "n": count}
    return requests(ctx, "sharegpt", f"chat-like(rate={rate},length={count / rate}s,limit={MAX_LEN})", seed, **options)


def held(ctx: Context, rule: str, seed: int, count: int) -> float:
    """The mean share of KV slots that hold tokens, over the steps in which requests wait."""
    from nubes.drivers.sim.llm import Instance, simulate_llm
    from nubes.llm.models import step_model
    from nubes.llm.scheduler import Scheduler

    shares: list[float] = []

    def watch(instance: Instance, now: float) -> None:
        state = instance.scheduler.state
        if state.waiting and instance.steps % 10 == 0:
            live = state.decode_context + sum(sequence.context for sequence in state.prefilling.values())
            shares.append(live / (state.pool.size * state.block_size))

    instance = Instance(Scheduler(SLOTS // 16, batching=RULES[rule], retention="none"), step_model("opt(opt-13b,tp=1)"))
    outcome: Served = simulate_llm(offered(ctx, count, seed, 16.0), [instance], watch=watch)
    assert outcome.steps
    return sum(shares) / len(shares)
