"""Two engine processes as one: answers are the same wherever they are made, moved, or made anew."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from llm.lora_models import saved
from nubes.drivers.local.llm_fleet import EngineFleet
from nubes.kernel.errors import NotFound, UsageError
from nubes.llm.checkpoint import load
from nubes.llm.cluster.seams import Way
from nubes.llm.errors import ContextTooLong
from nubes.llm.lora.adapter import random_adapter
from nubes.llm.spec import Delta, Grammar, Request, Sampling
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

        for _ in range(3):
            assert await killed(5) == wanted
        while len(fleet.fleet.members) < 2:
            await asyncio.sleep(0.02)
        assert not fleet.fleet.asks
        assert fleet.stats().generation_tokens

    with_fleet(use, routing="round-robin")


async def killed_once(fleet: EngineFleet, request: Request, after: int = 0) -> list[Delta]:
    """An answer, whose engine is killed after so many tokens."""
    said: list[Delta] = []
    async for delta in fleet.generate(request):
        assert not delta.error
        said.append(delta)
        if len(said) == after:
            fleet.kill(fleet.fleet.where[max(fleet.fleet.where)])
    return said


def test_chance_goes_on_where_an_engine_died() -> None:
    """Random tokens, log probabilities and structure are those of nobody disturbed."""
    numbers = Grammar("json_schema", '{"type": "array", "items": {"type": "integer"}, "minItems": 30}')
    kinds = (
        Sampling(max_tokens=80, temperature=1.0, seed=5, top_p=0.9, frequency_penalty=0.5, logprobs=2, ignore_eos=True),
        Sampling(max_tokens=80, temperature=0.0, repetition_penalty=1.3, ignore_eos=True),
        Sampling(max_tokens=80, temperature=0.8, seed=7, grammar=numbers),
        Sampling(max_tokens=80, temperature=1.0, seed=9, stop=("end of it",), ignore_eos=True),
    )

    async def use(fleet: EngineFleet) -> None:
        for sampling in kinds:

            def request(sampling: Sampling = sampling) -> Request:
                return Request(id="", prompt=PROMPT, sampling=sampling)

            wanted, found = await killed_once(fleet, request()), await killed_once(fleet, request(), after=5)
            assert [(d.text, d.tokens, d.finish, d.stop_reason) for d in found] == [
                (d.text, d.tokens, d.finish, d.stop_reason) for d in wanted
            ]
            for one, other in zip(found, wanted, strict=True):
                assert [p.token for p in one.logprobs or ()] == [p.token for p in other.logprobs or ()]

    with_fleet(use, routing="round-robin")


def test_adapters(tmp_path: Path) -> None:
    shape = load(MODEL).shape
    folder = saved(tmp_path / "pirate", random_adapter("pirate", shape, 8, 1, strength=2.0))

    async def use(fleet: EngineFleet) -> None:
        def request(adapter: str) -> Request:
            sampling = Sampling(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
            return Request(id="", prompt=PROMPT, sampling=sampling, adapter=adapter)

        def tokens(deltas: list[Delta]) -> list[int]:
            return [token for delta in deltas for token in delta.tokens]

        assert list(fleet.adapters) == ["pirate"]
        plain = tokens(await killed_once(fleet, request("")))
        adapted = tokens(await killed_once(fleet, request("pirate")))
        assert adapted != plain
        assert tokens(await killed_once(fleet, request("pirate"), after=5)) == adapted
        with pytest.raises(NotFound, match="pirate"):
            fleet.generate(request("nobody"))

    with_fleet(use, routing="round-robin", adapters={"pirate": str(folder)})


def test_what_does_not_fit_is_refused_at_once() -> None:
    async def use(fleet: EngineFleet) -> None:
        for n, tokens in ((1, 1000), (8, 60)):
            with pytest.raises(ContextTooLong, match="KV memory"):
                fleet.generate(Request(id="", prompt=PROMPT, n=n, sampling=Sampling(max_tokens=tokens)))
        with pytest.raises(UsageError, match="empty"):
            fleet.generate(Request(id="", prompt=[]))

    with_fleet(use)


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
