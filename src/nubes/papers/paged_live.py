"""PagedAttention in the engine: pages give the tokens that contiguous memory gives, and more requests run at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

from nubes.papers import Claim, Context, Result, above, at_least, at_most
from nubes.papers.generating import MODEL, ask, engine, missing, opened, prompts, saturated, text
from nubes.papers.serving import requests

if TYPE_CHECKING:
    from nubes.llm.checkpoint import Checkpoint
    from nubes.llm.runtime.rows import Runtime

SLOTS = 4096  # tokens of KV that the four policies share out
SHORTER = 4  # times: what the lengths of real chats are divided by
MAX_LEN = 2048 // SHORTER
RULES = {
    "paged": "vllm",
    "oracle": "orca(reserve=oracle)",
    "pow2": "orca(reserve=pow2)",
    "max": f"orca(reserve=max,max_len={MAX_LEN})",
}

SAME = Claim(
    "Pages change nothing about what is said.",
    "share of 64 prompts whose greedy answers, all at once in pages, are those of one at a time in contiguous memory",
    "blocks of the size of the context",
    at_least(1.0),
)
CLOSE = Claim(
    "Nor about the numbers behind it.",
    "largest difference of any logit of 64 prompts in fp32, pages anywhere in memory / contiguous memory",
    "blocks of the size of the context",
    at_most(1e-4),
)
BATCH = Claim(
    "With the same memory more requests run at once the less is reserved.",
    "mean running batch while requests wait, the least of paged / oracle, oracle / pow2, pow2 / max",
    "orca",
    above(1.0),
    "30.4, 13.6, 9.8, 7.0 (OPT-13B)",
)
FASTER = Claim(
    "And more tokens come of it.",
    "tokens/s while requests wait, the least of paged / oracle, oracle / pow2, pow2 / max",
    "orca",
    above(1.0),
)
BACK = Claim(
    "Those that gave way are answered as if they had not, swapped or computed again.",
    "share of greedy answers that are those of one request at a time, the smaller of swap and recompute",
    "none",
    at_least(1.0),
)
CLAIMS = (SAME, CLOSE, BATCH, FASTER, BACK)


def run(ctx: Context) -> Iterator[Result]:
    """All live claims; says so if there is no model."""
    why = missing()
    if why:
        yield from ctx.all_unmeasured(CLAIMS, why, "live")
        return
    yield from equal(ctx)
    yield from crowded(ctx)


def equal(ctx: Context) -> Iterator[Result]:
    """The same prompts in pages, in contiguous memory, and in so little memory that some have to give way."""
    checkpoint, paged = opened("fp32", SLOTS)
    _, whole = opened("fp32", 2 * checkpoint.shape.context, checkpoint.shape.context)
    _, tight = opened("fp32", SLOTS // 8)
    tokens = ctx.pick(8, 16)
    same: list[float] = []
    close: list[float] = []
    back: list[float] = []
    gave_way = []
    for seed in ctx.each("answers in pages and in contiguous memory"):
        asked = prompts(text(checkpoint), [16 + at for at in range(64)], seed)
        plain = answers(checkpoint, whole, asked, tokens, "static(max_seqs=1,reserve=oracle)", "recompute")[0]
        same.append(share(plain, answers(checkpoint, paged, asked, tokens, "vllm", "recompute")[0]))
        close.append(max(difference(paged, whole, prompt, seed) for prompt in asked))
        ways = [answers(checkpoint, tight, asked, tokens, "vllm", way) for way in ("recompute", "swap")]
        back.append(min(share(plain, found) for found, _ in ways))
        gave_way.append([count for _, count in ways])
    for runtime in (paged, whole, tight):
        runtime.close()
    about = f"{MODEL} in fp32, 64 prompts of 16 to 79 tokens of English, answers of {tokens}"
    yield ctx.result(SAME, same, f"{about}; {SLOTS:,} slots in pages of 16.", "live")
    yield ctx.result(CLOSE, close, f"{about}; pages in random order.", "live")
    counts = f"{min(again for again, _ in gave_way)} and {min(swaps for _, swaps in gave_way)} times"
    assert all(min(counted) for counted in gave_way), "nobody had to give way"
    yield ctx.result(
        BACK, back, f"{about}; {SLOTS // 8} slots: they gave way {counts} (recompute, swap) at least.", "live"
    )


def answers(
    checkpoint: Checkpoint, runtime: Runtime, asked: Sequence[list[int]], tokens: int, batching: str, preemption: str
) -> tuple[list[list[int]], int]:
    """The tokens that each prompt is answered with, asked all at once, and how often one gave way."""

    with engine(checkpoint, runtime, batching=batching, preemption=preemption) as made:

        async def everything() -> list[list[int]]:
            return [answer.tokens for answer in await asyncio.gather(*(ask(made, prompt, tokens) for prompt in asked))]

        return asyncio.run(everything()), made.stats().preemptions


def share(one: Sequence[list[int]], other: Sequence[list[int]]) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def difference(paged: Runtime, whole: Runtime, prompt: list[int], seed: int) -> float:
    """The largest difference between the logits after each token of a prompt."""
    import numpy as np

    from nubes.llm.runtime.rows import causal

    draw = np.random.default_rng(seed)
    tokens, every = np.array(prompt, np.int32), np.arange(len(prompt), dtype=np.int32)
    table = draw.permutation(paged.blocks)[: -(-len(prompt) // paged.block_size)].tolist()
    found = np.asarray(paged.step(tokens, causal([(table, 0, len(prompt))]), every))
    right = np.asarray(whole.step(tokens, causal([([1], 0, len(prompt))]), every))
    return float(np.abs(found - right).max())


def crowded(ctx: Context) -> Iterator[Result]:
    """More requests than memory can hold, under each rule to reserve it by."""
    checkpoint, runtime = opened("int8", SLOTS)
    batch: list[float] = []
    rates: list[float] = []
    seen: dict[str, list[tuple[float, float]]] = {rule: [] for rule in RULES}
    count = ctx.pick(80, 400)
    for seed in ctx.each("requests by the rule that memory is reserved by"):
        workload = requests(
            ctx, "sharegpt", f"chat-like(limit={4 * MAX_LEN},rate=1,length={2 * count}s)", seed, limit=SHORTER * MAX_LEN
        )
        lengths = [
            (max(1, prompt // SHORTER), max(1, output // SHORTER))
            for prompt, output in zip(workload.prompt[:count].tolist(), workload.output[:count].tolist(), strict=True)
        ]
        asked = prompts(text(checkpoint), [prompt for prompt, _ in lengths], seed)
        load = [(0.0, prompt, output) for prompt, (_, output) in zip(asked, lengths, strict=True)]
        found = []
        for rule, batching in RULES.items():
            ctx.say(f"{count} requests, memory reserved by the rule {rule}")
            with engine(checkpoint, runtime, batching=batching, preemption="swap") as made:
                found.append(asyncio.run(saturated(made, load)))
            seen[rule].append((found[-1].running, found[-1].rate))
        batch.append(min(a.running / b.running for a, b in pairwise(found)))
        rates.append(min(a.rate / b.rate for a, b in pairwise(found)))
    runtime.close()
    each = "; ".join(
        f"{rule} {median(running for running, _ in of):.3g} running, {median(rate for _, rate in of):.4g} tokens/s"
        for rule, of in seen.items()
    )
    about = (
        f"{MODEL} in int8, {SLOTS:,} slots, {count} real chats with lengths divided by {SHORTER} (at most {MAX_LEN}), "
        f"all there from the start; who gives way is swapped, which is faster here. While any wait: {each}."
    )
    yield ctx.result(BATCH, batch, about, "live")
    yield ctx.result(FASTER, rates, about, "live")
