"""Sarathi-Serve in the engine: answers go on at their pace while long prompts come in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from statistics import median
from time import monotonic
from typing import TYPE_CHECKING

import msgspec

from nubes.papers import Claim, Context, Result, at_least, at_most
from nubes.papers.generating import MODEL, Answer, ask, engine, missing, opened, prompts, text

if TYPE_CHECKING:
    from nubes.llm.checkpoint import Checkpoint
    from nubes.llm.engine.local import LocalEngine
    from nubes.llm.runtime.rows import Runtime

BUDGET = 64
PROMPT, EVERY_S = 2000, 4.0  # tokens of a long prompt, and how often one comes
BEHIND = 4  # sequences that decode all the time
SLOTS = 16_384

EVEN = Claim(
    "No token waits for a long prompt.",
    f"largest / median time between tokens of {BEHIND} answers, budget of {BUDGET} rows",
    "none",
    at_most(3.0),
)
TAIL = Claim(
    "As it does where prompts go first.",
    f"P99 time between tokens, prompts first / budget of {BUDGET} rows",
    "vllm",
    at_least(5.0),
)
WORK = Claim(
    "And nearly as much gets done.",
    f"tokens of prompts and answers a second until the last long prompt is answered, budget of {BUDGET} rows / prompts "
    "first",
    "vllm",
    at_least(0.85),
)
CLOSE = Claim(
    "A prompt in pieces gives the numbers of a whole one.",
    f"largest difference of any logit after a prompt of {PROMPT} tokens in fp32, pieces of {BUDGET} / whole",
    "none",
    at_most(1e-3),
)
CLAIMS = (EVEN, TAIL, WORK, CLOSE)


class Day(msgspec.Struct, frozen=True):
    """Times between tokens of those behind, and tokens a second of all together."""

    gaps_s: list[float]
    rate: float

    def tail_s(self, share: float = 0.99) -> float:
        return sorted(self.gaps_s)[min(len(self.gaps_s) - 1, int(share * len(self.gaps_s)))]


def run(ctx: Context) -> Iterator[Result]:
    """All live claims; says so if there is no model."""
    why = missing()
    if why:
        yield from ctx.all_unmeasured(CLAIMS, why, "live")
        return
    checkpoint, runtime = opened("fp32", SLOTS)
    count = ctx.pick(5, 20)
    days: list[tuple[Day, Day]] = []
    close: list[float] = []
    for seed in ctx.each("long prompts beside short answers"):
        close.append(difference(checkpoint, runtime, seed))
        cut, first = (
            day(checkpoint, runtime, batching, count, seed) for batching in (f"sarathi(budget={BUDGET})", "vllm")
        )
        days.append((cut, first))
    runtime.close()
    cut, first = days[0]
    about = (
        f"{MODEL} in fp32, {BEHIND} answers going on, {count} prompts of {PROMPT:,} tokens, one every {EVERY_S:g} s. "
        f"Seed 0, budget of {BUDGET}: median gap {median(cut.gaps_s):.3g} s, P99 {cut.tail_s():.3g}, {cut.rate:.3g} "
        f"tokens/s; prompts first: {median(first.gaps_s):.3g}, {first.tail_s():.3g}, {first.rate:.3g}."
    )
    yield ctx.result(EVEN, [max(of.gaps_s) / median(of.gaps_s) for of, _ in days], about, "live")
    yield ctx.result(TAIL, [first.tail_s() / cut.tail_s() for cut, first in days], about, "live")
    yield ctx.result(WORK, [cut.rate / first.rate for cut, first in days], about, "live")
    yield ctx.result(CLOSE, close, f"{MODEL} in fp32.", "live")


def day(checkpoint: Checkpoint, runtime: Runtime, batching: str, count: int, seed: int) -> Day:
    """Answers going on while long prompts come by the clock, until the last of these is answered."""
    lengths = [16] * BEHIND + [PROMPT] * count
    asked = prompts(text(checkpoint), lengths, seed)

    async def work(made: LocalEngine) -> Day:
        behind = [Answer() for _ in range(BEHIND)]
        tasks = [asyncio.ensure_future(_forever(made, prompt, of)) for prompt, of in zip(asked, behind, strict=False)]
        while not all(of.told_s for of in behind):
            await asyncio.sleep(0.01)
        begun, before = monotonic(), made.stats().generation_tokens

        async def one(number: int, prompt: list[int]) -> None:
            await asyncio.sleep(max(0.0, begun + number * EVERY_S - monotonic()))
            await ask(made, prompt, 1)

        await asyncio.gather(*(one(number, prompt) for number, prompt in enumerate(asked[BEHIND:])))
        ended, after = monotonic(), made.stats().generation_tokens
        while not all(of.told_s[-1] > ended for of in behind):  # a gap that is under way counts, too
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        gaps = [b - a for of in behind for a, b in pairwise(of.told_s) if b > begun and a < ended]
        return Day(gaps, (count * PROMPT + after - before) / (ended - begun))

    with engine(checkpoint, runtime, batching=batching) as made:
        return asyncio.run(work(made))


async def _forever(made: LocalEngine, prompt: list[int], answer: Answer) -> None:
    """One answer as long as the context allows. At the pace of a CPU it does not end before the day does."""
    await ask(made, prompt, made.context - len(prompt), answer)


def difference(checkpoint: Checkpoint, runtime: Runtime, seed: int) -> float:
    """Between the logits after a prompt in pieces and those after a whole one."""
    import numpy as np

    from nubes.llm.runtime.rows import causal

    (prompt,) = prompts(text(checkpoint), [PROMPT], seed)
    tokens = np.array(prompt, np.int32)
    blocks = -(-PROMPT // runtime.block_size)
    one, other = list(range(blocks)), list(range(blocks, 2 * blocks))
    whole = runtime.step(tokens, causal([(one, 0, PROMPT)]), np.array([PROMPT - 1], np.int32))
    for start in range(0, PROMPT, BUDGET):
        count = min(BUDGET, PROMPT - start)
        rows = causal([(other, start, count)])
        pieces = runtime.step(tokens[start : start + count], rows, np.array([count - 1], np.int32))
    return float(np.abs(np.asarray(whole) - np.asarray(pieces)).max())
