"""Llumnix, live: a running request moves between the paged caches of two engine processes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

from nubes.papers.claims import Claim, Result
from nubes.papers.fleets import OnDemand, ask, missing, opened, prompts

if TYPE_CHECKING:
    from nubes.llm.cluster.seams import Way
    from nubes.papers.context import Context

TOKENS = 48
WAYS: tuple[Way, ...] = ("live", "copy", "recompute")


def live(ctx: Context, same: Claim, down: Claim, copy: Claim, recompute: Claim) -> Iterator[Result]:
    why = missing()
    if why:
        for claim in (same, down, copy, recompute):
            yield ctx.unmeasured(claim, why, "live")
        return
    contexts, repeats = ctx.pick((256, 1024, 4096), (256, 512, 1024, 2048, 4096)), ctx.pick(3, 7)
    alike, stops, copies, recomputes = [], [], [], []
    for seed in ctx.each("requests that move"):
        equal, gaps, step_s = asyncio.run(moves(ctx, seed, contexts, repeats))
        first, last = contexts[0], contexts[-1]
        alike.append(equal)
        stops.append(max(gaps["live", context] for context in contexts) / step_s)
        copies.append(gaps["copy", last] / gaps["copy", first])
        recomputes.append(gaps["recompute", last] / gaps["recompute", first])
    about = f"smollm2-135m in int8 on two engine processes of one core each, contexts {contexts}, {repeats} moves each."
    yield ctx.result(same, alike, about, "live")
    yield ctx.result(down, stops, about, "live")
    yield ctx.result(copy, copies, about, "live")
    yield ctx.result(recompute, recomputes, about, "live")


async def moves(
    ctx: Context, seed: int, contexts: tuple[int, ...], repeats: int
) -> tuple[float, dict[tuple[str, int], float], float]:
    """The share of answers that stay the same, the median gap by way and context, and the median step between moves."""
    policy = OnDemand()
    gaps: dict[tuple[str, int], float] = {}
    steps: list[float] = []
    equal = total = 0
    async with opened(
        roles=("both", "both"), blocks=600, routing="round-robin", migration=policy, retention="none"
    ) as fleet:
        for context in contexts:
            for prompt in prompts(ctx, seed, 2, context):  # the first touch of memory is the system's, not ours
                await ask(fleet, prompt, 2)
            found: dict[str, list[float]] = {way: [] for way in WAYS}
            for prompt in prompts(ctx, seed, repeats, context):
                said, _ = await ask(fleet, prompt, TOKENS)
                for way in WAYS:
                    policy.ask(way, context + 8)
                    fleet.handed_s.clear()
                    before = fleet.fleet.moved
                    moved, times = await ask(fleet, prompt, TOKENS)
                    total += 1
                    equal += moved == said
                    between = [b - a for a, b in pairwise(times)]
                    steps += between
                    if fleet.fleet.moved > before:
                        found[way].append(_gap(times, fleet.handed_s[-1][1]) if fleet.handed_s else max(between))
            for way in WAYS:
                gaps[way, context] = median(found[way])
    return equal / total, gaps, median(steps)


def _gap(times: list[float], landed_s: float) -> float:
    """The time between the tokens before and after the landing."""
    at = next(at for at, time in enumerate(times) if time >= landed_s)
    return times[at] - times[at - 1]
