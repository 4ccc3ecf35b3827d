"""PagedAttention: KV memory in pages against memory reserved ahead, on a profiled A100 and in the engine."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from nubes.llm.policies.vllm import PAPER
from nubes.papers import Claim, Context, Result, above, at_least, at_most, below, between, paged_live, reproduction
from nubes.papers.paging import recovery_s, sampled
from nubes.papers.serving import capacity, normalised_s, requests, served, words

if TYPE_CHECKING:
    from nubes.drivers.sim.llm import Instance, Served
    from nubes.llm.scheduling.load import StepModel
    from nubes.workloads.llm import LLMWorkload

SLOTS = 15_700  # tokens of KV: 12 GB of an A100-40GB at 0.8 MB a token
MAX_LEN = 2048
WIDTH = 4  # samples of one prompt
SIZES = [1 << power for power in range(9)]  # of blocks
LENGTHS = (256, 512, 1024)  # of sequences that give way
# vLLM copies the K and the V of every layer on its own. A copy over PCIe 4.0 takes this long to start (assumed).
COPY_S, LINK = 10e-6, 25e9
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
ONE_SHOT = Claim(
    "A prefix that all prompts share is kept once.",
    "highest rate with a mean normalised latency of at most 0.1 s a token, prompts that share 80 tokens, "
    "paged / Orca (Oracle)",
    "orca(reserve=oracle)",
    at_least(1.25),
    "1.67 times (LLaMA-13B, one example)",
)
FIVE_SHOT = Claim(
    "The longer it is, the more is gained.",
    "the same with 341 shared tokens",
    "orca(reserve=oracle)",
    at_least(2.0),
    "3.58 times (LLaMA-13B, five examples)",
)
SAMPLES = Claim(
    "Samples of one prompt share its blocks.",
    f"blocks held by {WIDTH} samples / {WIDTH} times the blocks of one",
    "none",
    below(1.0),
    "6.1 to 9.8 % saved (Alpaca)",
)
COPIES = Claim(
    "And copy at most one block each.",
    "blocks copied on write for each sample, the most of any request",
    "none",
    at_most(1.0),
)
FLAT = Claim(
    "To compute KV again takes as long whatever the size of blocks.",
    "longest / shortest time over block sizes of 1 to 256",
    "none",
    at_most(1.05),
)
SMALL = Claim(
    "To swap is slowest in small blocks.",
    "time with blocks of 1 / longest time with larger ones",
    "none",
    above(1.0),
)
CROSSING = Claim(
    "From medium blocks on it is faster to swap.",
    "smallest block size at which swapping is faster, median over lengths",
    "recompute",
    between(16, 64),
    "comparable from 16 to 64",
)
CLAIMS = (
    OVER_MAX, OVER_ORACLE, USE_MAX, USE_PAGED, ONE_SHOT, FIVE_SHOT, SAMPLES, COPIES, FLAT, SMALL, CROSSING,
    *paged_live.CLAIMS,
)  # fmt: skip


@reproduction(PAPER, claims=CLAIMS, area="llm", seam="batching, preemption", mode="both")
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
    yield ctx.result(OVER_MAX, [a / b for a, b in zip(rates["paged"], rates["max"], strict=True)], about, "simulated")
    yield ctx.result(
        OVER_ORACLE, [a / b for a, b in zip(rates["paged"], rates["oracle"], strict=True)], about, "simulated"
    )
    yield ctx.result(USE_MAX, use["max"], about, "simulated")
    yield ctx.result(USE_PAGED, use["paged"], about, "simulated")
    yield from prefixes(ctx, model)
    yield from samples(ctx)
    yield from recoveries(ctx, model)
    yield from paged_live.run(ctx)


def prefixes(ctx: Context, model: StepModel) -> Iterator[Result]:
    """Prompts like a translator's: instructions and examples that all share, then a sentence of their own."""

    def sustains(policies: tuple[str, str], tokens: int, seed: int, rate: float) -> bool:
        batching, retention = policies
        workload = translations(ctx.pick(600, 2000), tokens, rate, seed)
        return normalised_s(served(workload, model, SLOTS, batching=batching, retention=retention)) <= BOUND_S

    kinds = (("vllm", "lru"), (RULES["oracle"], "none"), ("vllm", "none"))
    for claim, tokens in ((ONE_SHOT, 80), (FIVE_SHOT, 341)):
        rates = [
            [capacity(partial(sustains, policies, tokens, seed), 0.5, 128.0) for policies in kinds]
            for seed in ctx.each(f"{tokens} shared tokens")
        ]
        shared, oracle, apart = rates[0]
        said = (
            f"{words(translations(ctx.pick(600, 2000), tokens, 1.0, 0))} opt-13b, {SLOTS:,} slots. Requests/s of "
            f"seed 0: {shared:.3g}, {apart:.3g} if nothing is shared, {oracle:.3g} Orca (Oracle), whose prompts "
            "ride along with the decodes, where paged ones take iterations of their own."
        )
        yield ctx.result(claim, [ours / theirs for ours, theirs, _ in rates], said, "simulated")


def translations(n: int, shared: int, rate: float, seed: int) -> LLMWorkload:
    """Sentences of 10 to 60 tokens behind `shared` ones, translated to as many."""
    from nubes.workloads.draws import generator
    from nubes.workloads.llm import LLMWorkload
    from nubes.workloads.llm_synthetic import arrivals

    draw = generator(seed, "translations")
    when, own, output = arrivals(draw, rate, n), draw.integers(10, 61, n), draw.integers(10, 61, n)
    whole = shared // 16
    blocks = tuple(
        (*range(whole), *range(whole + 32 * at, whole + 32 * at + -(-(shared + int(tokens)) // 16) - whole))
        for at, tokens in enumerate(own)
    )
    source = f"{shared} tokens that all prompts share, then 10 to 60 of their own and answers of 10 to 60; Poisson."
    return LLMWorkload(
        "translations", source, when, shared + own, output, float(when[-1]), blocks=blocks, block_tokens=16
    )


def samples(ctx: Context) -> Iterator[Result]:
    """Blocks that the samples of one prompt hold together, one request after the other."""
    saved: list[float] = []
    copied: list[float] = []
    count = ctx.pick(100, 1000)
    for seed in ctx.each("samples of one prompt"):
        workload = offered(ctx, count, seed, 1.0)
        pairs = list(zip(workload.prompt.tolist(), workload.output.tolist(), strict=True))
        counts = [sampled(prompt, output, WIDTH) for prompt, output in pairs]
        alone = sum(WIDTH * -(-(prompt + output - 1) // 16) for prompt, output in pairs)  # no KV of the last
        saved.append(sum(held for held, _ in counts) / alone)
        copied.append(max(copies for _, copies in counts) / WIDTH)
    about = f"{words(offered(ctx, count, 0, 1.0))} Blocks of 16, counted in the scheduler."
    yield ctx.result(SAMPLES, saved, about, "simulated")
    yield ctx.result(COPIES, copied, about, "simulated")


def recoveries(ctx: Context, model: StepModel) -> Iterator[Result]:
    """What giving way costs by the size of blocks."""
    copies = 2 * 40  # K and V of opt-13b's layers

    def block_s(size: int) -> float:
        return copies * COPY_S + size * model.kv_bytes / LINK

    ctx.say("swapping and computing again")
    took = {
        (how, tokens): [recovery_s(model, block_s, how, size, tokens) for size in SIZES]
        for how in ("recompute", "swap")
        for tokens in LENGTHS
    }
    about = (
        f"A sequence of {', '.join(map(str, LENGTHS))} tokens that gives way once, opt-13b on an A100. A block takes "
        f"{copies} copies, of K and V of every layer; assumed: {COPY_S * 1e6:g} us to start each, {LINK / 1e9:g} GB/s."
    )
    again = [took["recompute", tokens] for tokens in LENGTHS]
    swaps = [took["swap", tokens] for tokens in LENGTHS]
    yield ctx.result(FLAT, [max(max(of) / min(of) for of in again)], about, "simulated")
    yield ctx.result(SMALL, [min(of[0] / max(of[1:]) for of in swaps)], about, "simulated")
    crossings = [
        next((size for size, a, b in zip(SIZES, swap, other, strict=True) if a < b), 2 * SIZES[-1])
        for swap, other in zip(swaps, again, strict=True)
    ]
    each = ", ".join(f"{size} for {tokens}" for tokens, size in zip(LENGTHS, crossings, strict=True))
    yield ctx.result(CROSSING, [median(crossings)], f"{about} From block size {each} tokens.", "simulated")


def offered(ctx: Context, count: int, seed: int, rate: float) -> LLMWorkload:
    """Real chat lengths that fit the model, arriving at random."""
    options = {"rate": rate, "limit": MAX_LEN, "n": count}
    return requests(ctx, "sharegpt", f"chat-like(rate={rate},length={count / rate}s,limit={MAX_LEN})", seed, **options)


def held(ctx: Context, rule: str, seed: int, count: int) -> float:
    """The mean share of KV slots that hold tokens, over the steps in which requests wait."""
    from nubes.drivers.sim.llm import Instance, simulate_llm
    from nubes.llm.models import step_model
    from nubes.llm.scheduling.scheduler import Scheduler

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
