"""Two engine processes as one: answers are the same wherever they are made, moved, or made anew."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from nubes.drivers.local.llm_fleet import EngineFleet
from nubes.llm.cluster.seams import Way
from nubes.llm.spec import Request, Sampling
from nubes.papers.fleets import MODEL, OnDemand, ask, missing

WHY = missing()
pytestmark = pytest.mark.skipif(bool(WHY), reason=WHY or "-")

PROMPT = [*range(300, 390)]
TOKENS = 24


def with_fleet(use: Callable[[EngineFleet], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        fleet = EngineFleet(MODEL, blocks=64, **options)
        await fleet.start()
        try:
            await asyncio.wait_for(use(fleet), 120)
        finally:
            await fleet.close()

    asyncio.run(run())


async def _settled(fleet: EngineFleet) -> None:
    """All blocks come back."""
    for _ in range(100):
        await fleet.refresh()
        if fleet.stats().blocks and fleet.stats().free_blocks == fleet.stats().blocks:
            return
    raise AssertionError("blocks are lost")


async def until_moved(
    fleet: EngineFleet,
    policy: OnDemand,
    way: Way,
    say: Callable[[], Awaitable[tuple[list[int], Any]]],
    wanted: list[int],
) -> None:
    """Asks again and again, until an answer did not end before it could move: all are the same."""
    for _ in range(10):
        moved = fleet.fleet.moved
        policy.ask(way, len(PROMPT) + 2)
        assert (await say())[0] == wanted
        policy.wanted.clear()
        if fleet.fleet.moved > moved:
            return
    raise AssertionError(f"nothing moved: {way}")


def test_answers_move() -> None:
    policy = OnDemand()

    async def use(fleet: EngineFleet) -> None:
        wanted, _ = await ask(fleet, PROMPT, TOKENS)
        assert len(wanted) == TOKENS
        ways: tuple[Way, ...] = ("live", "copy", "recompute", "tokens")
        for way in ways:
            await until_moved(fleet, policy, way, lambda: ask(fleet, PROMPT, TOKENS), wanted)
        policy.ask("live", len(PROMPT) + 2)
        answers = await asyncio.gather(*(ask(fleet, [*PROMPT, n], TOKENS) for n in range(4)))
        assert [len(said) for said, _ in answers] == [TOKENS] * 4
        await _settled(fleet)

    with_fleet(use, migration=policy, routing="round-robin")


def test_sampled_answers_move_with_their_chance() -> None:
    policy = OnDemand()

    async def sampled(fleet: EngineFleet) -> tuple[list[int], None]:
        sampling = Sampling(max_tokens=TOKENS, temperature=1.0, seed=5, ignore_eos=True)
        deltas = fleet.generate(Request(id="", prompt=PROMPT, sampling=sampling))
        return [token async for delta in deltas for token in delta.tokens], None

    async def use(fleet: EngineFleet) -> None:
        wanted, _ = await sampled(fleet)
        await until_moved(fleet, policy, "copy", lambda: sampled(fleet), wanted)

    with_fleet(use, migration=policy, routing="round-robin")


def test_prompts_and_answers_apart() -> None:
    async def use(fleet: EngineFleet) -> None:
        answers = await asyncio.gather(*(ask(fleet, [*PROMPT, n], TOKENS) for n in range(5)))
        assert fleet.fleet.moved == 5
        for n, (said, _) in enumerate(answers):
            assert (await ask(fleet, [*PROMPT, n], TOKENS))[0] == said
        await _settled(fleet)

    with_fleet(use, roles=("prefill", "decode"), routing="distserve")


def test_an_engine_dies_and_its_answers_go_on() -> None:
    async def use(fleet: EngineFleet) -> None:
        wanted, _ = await ask(fleet, PROMPT, TOKENS)

        async def killed(after: int) -> list[int]:
            said: list[int] = []
            sampling = Sampling(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
            async for delta in fleet.generate(Request(id="", prompt=PROMPT, sampling=sampling)):
                assert not delta.error
                said += delta.tokens
                if len(said) == after:
                    fleet.kill(next(iter(fleet.fleet.where.values())))
            return said

        assert await killed(5) == wanted
        assert len(fleet.fleet.members) == 1
        with pytest.raises(AssertionError):
            await killed(5)  # the last one
        assert not fleet.fleet.asks

    with_fleet(use, routing="round-robin")


def test_who_leaves_frees_everything() -> None:
    policy = OnDemand()

    async def use(fleet: EngineFleet) -> None:
        ways: tuple[Way, ...] = ("live", "tokens")
        for way in ways:
            policy.ask(way, len(PROMPT) + 2)
            sampling = Sampling(max_tokens=200, temperature=0.0, ignore_eos=True)
            deltas = fleet.generate(Request(id="", prompt=PROMPT, sampling=sampling))
            for _ in range(6):
                await anext(deltas)
            await deltas.aclose()
            assert not fleet.fleet.asks
            await _settled(fleet)

    with_fleet(use, migration=policy, routing="round-robin")
