"""DistServe, live: one engine process computes prompts, another makes the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from nubes.papers.claims import Claim, Result
from nubes.papers.fleets import ask, missing, opened, prompts

if TYPE_CHECKING:
    from nubes.papers.context import Context

PROMPT = 1024
SHORT = 32


def live(ctx: Context, same: Claim, calm: Claim) -> Iterator[Result]:
    why = missing()
    if why:
        yield from ctx.all_unmeasured((same, calm), why, "live")
        return
    alike, ratios, first = [], [], []
    for seed in ctx.each("prompts and answers in two processes"):
        answers, apart_s, apart_first_s = asyncio.run(disturbed(ctx, seed, apart=True))
        others, together_s, together_first_s = asyncio.run(disturbed(ctx, seed, apart=False))
        alike.append(sum(a == b for a, b in zip(answers, others, strict=True)) / len(answers))
        ratios.append(together_s / apart_s)
        first.append((apart_first_s, together_first_s))
    about = (
        f"smollm2-135m in int8 on two cores: two engines of one core each, or one of both, prompts first. Answers "
        f"run while prompts of {PROMPT} tokens come one after the other. Mean time to the first token of these: "
        f"{first[0][0]:.2f} s apart, {first[0][1]:.2f} s together."
    )
    yield ctx.result(same, alike, about, "live")
    yield ctx.result(calm, ratios, about, "live")


async def disturbed(ctx: Context, seed: int, apart: bool) -> tuple[list[list[int]], float, float]:
    """Every answer, the P99 of times between tokens of those that run, the mean first token of what disturbs them."""
    import numpy as np

    running, count = ctx.pick(4, 8), ctx.pick(6, 16)
    options = {"roles": ("prefill", "decode"), "routing": "distserve"} if apart else {"roles": ("both",), "threads": 2}
    async with opened(pinned=apart, blocks=1200, batching="vllm", retention="none", **options) as fleet:
        short = prompts(ctx, seed, running, SHORT)
        going = [asyncio.create_task(ask(fleet, prompt, 400)) for prompt in short]
        await asyncio.sleep(1.0)
        answers, firsts = [], []
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for prompt in prompts(ctx, seed, count, PROMPT):
            sent = loop.time()
            said, times = await ask(fleet, prompt, 2)
            answers.append(said)
            firsts.append(times[0] - sent)
        ended = loop.time()
        gaps: list[float] = []
        for said, times in await asyncio.gather(*going):
            answers.append(said)
            gaps += [b - a for a, b in pairwise(times) if begun <= b <= ended]
    return answers, float(np.percentile(gaps, 99)), sum(firsts) / len(firsts)
