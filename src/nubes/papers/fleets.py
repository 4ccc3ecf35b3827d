"""What live reproductions with two engine processes share: the engines, a move on demand, and what a client sees."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

from nubes.llm.cluster.member import Member
from nubes.llm.cluster.seams import Migration, Move, Way
from nubes.papers import generating
from nubes.papers.generating import MODEL

if TYPE_CHECKING:
    from nubes.drivers.local.llm_fleet import EngineFleet
    from nubes.papers.context import Context


def missing() -> str:
    """Why live engines cannot run here; "" if they can."""
    return generating.missing() or ("" if len(os.sched_getaffinity(0)) >= 2 else "it takes two cores")


class OnDemand(Migration):
    """Moves what runs, each time `ask` was called for it, once it has so many tokens."""

    def __init__(self) -> None:
        self.period_s = 0.02
        self.wanted: deque[tuple[Way, int]] = deque()

    def ask(self, way: Way, tokens: int) -> None:
        self.wanted.append((way, tokens))

    def moves(self, members: Sequence[Member], now: float) -> list[Move]:
        if not self.wanted:
            return []
        way, tokens = self.wanted[0]
        for source in members:
            target = next((m for m in members if m is not source), None)
            for running in source.report.sequences:
                here = running.id in source.requests and not source.sending  # reports are from a while ago
                if here and running.tokens >= tokens and target is not None:
                    self.wanted.popleft()
                    return [Move(running.id, source.number, target.number, way)]
        return []


@asynccontextmanager
async def opened(pinned: bool = True, **options: Any) -> AsyncIterator[EngineFleet]:
    """Engines of the small model; `pinned`: each to a core of its own."""
    from nubes.drivers.local.llm_fleet import EngineFleet

    cores = sorted(os.sched_getaffinity(0)) if pinned else []
    fleet = EngineFleet(MODEL, cores=cores, **options)
    await fleet.start()
    try:
        yield fleet
    finally:
        await fleet.close()


async def ask(fleet: EngineFleet, prompt: list[int], tokens: int) -> tuple[list[int], list[float]]:
    """A greedy answer of so many tokens, and when each of them came."""
    from nubes.llm.spec import Request, Sampling

    sampling = Sampling(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    said: list[int] = []
    times: list[float] = []
    async for delta in fleet.generate(Request(id="", prompt=prompt, sampling=sampling)):
        if delta.error:
            raise RuntimeError(delta.error)
        said += delta.tokens
        times += [monotonic()] * len(delta.tokens)
    return said, times


def prompts(ctx: Context, seed: int, count: int, length: int) -> list[list[int]]:
    """Token ids at random: no two share anything."""
    from nubes.workloads.draws import generator

    drawn = generator(seed, ctx.paper.id, str(length)).integers(100, 40_000, (count, length))
    found: list[list[int]] = drawn.tolist()
    return found
