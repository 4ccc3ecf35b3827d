"""Llumnix, live: a running request moves between the paged caches of two engine processes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

from nubes.kernel.errors import NubesError
from nubes.papers.claims import Claim, Result
from nubes.papers.fleets import OnDemand, ask, missing, opened, prompts

if TYPE_CHECKING:
    from nubes.drivers.local.llm_fleet import EngineFleet
    from nubes.llm.cluster.seams import Way
    from nubes.papers.context import Context

TOKENS = 64
WAYS: tuple[tuple[Way, int], ...] = (("live", 8), ("copy", 24), ("recompute", 40))  # each once it has so many tokens
TRIES = 3  # of an answer that ended before all of its moves

Gaps = dict[tuple[str, int], float]


def live(ctx: Context, same: Claim, down: Claim, copy: Claim, recompute: Claim) -> Iterator[Result]:
    why = missing()
    if why:
        yield from ctx.all_unmeasured((same, down, copy, recompute), why, "live")
        return
    contexts, repeats = ctx.pick((256, 4096), (256, 512, 1024, 2048, 4096)), ctx.pick(3, 7)
    alike, stops, copies, recomputes = [], [], [], []
    for seed in ctx.each("requests that move"):
        equal, gaps, step_s = asyncio.run(moves(ctx, seed, contexts, repeats))
        first, last = contexts[0], contexts[-1]
        alike.append(equal)
        stops.append(max(gaps["live", context] for context in contexts) / step_s)
        copies.append(gaps["copy", last] / gaps["copy", first])
        recomputes.append(gaps["recompute", last] / gaps["recompute", first])
    about = (
        f"smollm2-135m in int8 on two engine processes of one core each, contexts {contexts}, {repeats} answers each "
        "that move in all three ways, one after the other."
    )
    yield ctx.result(same, alike, about, "live")
    shown = ", ".join(f"{way} at {context}: {1e3 * gap:.0f} ms" for (way, context), gap in gaps.items())
    about += f" Median gaps of the last seed: {shown}; step: {1e3 * step_s:.1f} ms."
    yield ctx.result(down, stops, about, "live")
    yield ctx.result(copy, copies, about, "live")
    yield ctx.result(recompute, recomputes, about, "live")


async def moves(ctx: Context, seed: int, contexts: tuple[int, ...], repeats: int) -> tuple[float, Gaps, float]:
    """The share of answers that stay the same, the median gap by way and context, and the median step between moves."""
    policy = OnDemand()
    gaps: Gaps = {}
    steps: list[float] = []
    equal = total = 0
    async with opened(
        roles=("both", "both"), blocks=600, routing="round-robin", migration=policy, retention="none"
    ) as fleet:
        for context in contexts:
            for prompt in prompts(ctx, seed, 2, context):  # the first touch of memory is the system's, not ours
                await ask(fleet, prompt, 2)
            found: list[tuple[float, ...]] = []
            for nth, prompt in enumerate(prompts(ctx, seed, repeats, context)):
                ctx.say(f"contexts of {context} tokens, {nth + 1} of {repeats}")
                said, times = await ask(fleet, prompt, TOKENS)
                steps += [b - a for a, b in pairwise(times)]
                for _ in range(TRIES):
                    moved, stopped_s = await move(fleet, policy, prompt, context)
                    total += 1
                    equal += moved == said
                    if stopped_s:
                        found.append(stopped_s)
                        break
            if not found:
                raise NubesError(f"No answer of {context} tokens moved.", "Try again where less else runs.")
            for (way, _), stops_s in zip(WAYS, zip(*found, strict=True), strict=True):
                gaps[way, context] = median(stops_s)
    return equal / total, gaps, median(steps)


async def move(
    fleet: EngineFleet, policy: OnDemand, prompt: list[int], context: int
) -> tuple[list[int], tuple[float, ...]]:
    """An answer that moves in all three ways, and how long it stopped each time; none if it ended before."""
    for way, after in WAYS:
        policy.ask(way, context + after)
    fleet.handed_s.clear()
    before = fleet.fleet.moved
    said, times = await ask(fleet, prompt, TOKENS)
    policy.wanted.clear()
    if fleet.fleet.moved < before + len(WAYS):
        return said, ()
    live_s, copy_s = (_gap(times, landed_s) for _, landed_s in fleet.handed_s)
    again_s = max(b - a for a, b in pairwise(times) if a >= fleet.handed_s[-1][1])  # nothing lands: it begins anew
    return said, (live_s, copy_s, again_s)


def _gap(times: list[float], landed_s: float) -> float:
    """The time between the tokens before and after the landing."""
    at = next(at for at, time in enumerate(times) if time >= landed_s)
    return times[at] - times[at - 1]
