"""Guessing ahead in engines: answers stay the same to the token."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from nubes.llm.scheduling.invariants import check
from nubes.llm.scheduling.load import Load
from nubes.llm.scheduling.state import State
from nubes.llm.seams import Speculation
from nubes.llm.speculative.tree import Tree, expand
from tests.llm.toy import ask, engine, following, plain


class Oracle(Speculation):
    """Guesses that are right about two times in three, at any rank. Checks the engine after every step."""

    def __init__(self, widths: tuple[int, ...], seed: int = 0) -> None:
        self.given, self.random = widths, random.Random(seed)
        self.state: State | None = None
        self.deepest, self.held = 0, Counter[int]()

    def widths(self, state: State, load: Load) -> tuple[int, ...]:
        self.state = state
        return self.given if self.random.random() < 0.8 else ()

    def draft(self) -> Oracle:  # type: ignore[override]
        return _Guessing(self)  # type: ignore[return-value]

    def verified(self, path: Sequence[tuple[int, int]]) -> None:
        self.held.update(rank for _, rank in path)
        self.deepest = max(self.deepest, sum(rank >= 0 for _, rank in path))

    def ran(self, load: Load, seconds: float) -> None:
        if self.state is not None:
            check(self.state)


class _Guessing:
    def __init__(self, oracle: Oracle) -> None:
        self.random = oracle.random

    def draft(self, text: Sequence[int], widths: Sequence[int]) -> Tree:
        def likely(path: Sequence[int], count: int) -> list[int]:
            guesses = self.random.sample(range(10, 210), count)
            right = following(path)
            if self.random.random() < 0.7 and right not in guesses:
                guesses[self.random.randrange(count)] = right
            return guesses

        return expand(text, widths, likely)


def run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 120))


@pytest.mark.parametrize("widths", [(1,), (1, 1, 1, 1), (3, 1, 1), (2, 2, 2), (1, 1, 3, 1, 1)])
def test_answers_are_those_of_plain_decoding(widths: tuple[int, ...]) -> None:
    async def day() -> None:
        oracle = Oracle(widths)
        async with engine(speculation=oracle, blocks=40, block_size=4) as made:
            prompts = [[20 + n, *range(30, 30 + n % 7)] for n in range(12)]
            counts = [1 + 5 * n % 31 for n in range(12)]
            answers = await asyncio.gather(*(ask(made, p, c) for p, c in zip(prompts, counts, strict=True)))
            shared = await ask(made, [5] * 9, 20, n=3)
            assert [answer for (answer,) in answers] == [plain(p, c) for p, c in zip(prompts, counts, strict=True)]
            assert shared == [plain([5] * 9, 20)] * 3
            assert made.scheduler.state.pool.used == 0
            assert oracle.deepest >= min(2, len(widths))
            assert len(widths) == 1 or made.runtime.steps < sum(counts)
            assert all(oracle.held[rank] for rank in range(-1, max(widths)))

    run(day())


def test_what_was_guessed_is_kept_for_others_as_it_should_be() -> None:
    """An answer's KV is found by the next request that begins with it, and gives the right tokens."""

    async def day() -> None:
        async with engine(speculation=Oracle((2, 2, 1)), block_size=4) as made:
            prompt = [40, 41, 42, 43, 44]
            (answer,) = await ask(made, prompt, 30)
            hits = made.stats().prefix_hits
            (more,) = await ask(made, prompt + answer, 20)
            assert more == plain(prompt + answer, 20)
            assert made.stats().prefix_hits - hits >= 28

    run(day())


def test_random_answers_and_penalties_are_those_of_plain_decoding() -> None:
    """A guess holds if it is what would have been chosen: the same random numbers give the same answer."""

    async def day() -> None:
        for sampling in (
            {"temperature": 1.5, "seed": 3},
            {"temperature": 5.0, "seed": 4, "top_p": 0.9},
            {"frequency_penalty": 2.0},
            {"stop_token_ids": [plain([9, 9], 12)[-1]]},
        ):
            answers = []
            for speculation in ("off", Oracle((2, 2, 1))):
                async with engine(speculation=speculation) as made:
                    answers.append(await ask(made, [9, 9], 40, sampling=sampling))
            assert answers[0] == answers[1]

    run(day())


def test_a_nan_after_a_guess_fails_its_request_only() -> None:
    async def day() -> None:
        poison = plain([9, 9], 12)[-1]
        async with engine(speculation=Oracle((2, 1, 1)), poison=poison) as made:
            with pytest.raises(AssertionError, match="not a number"):
                await ask(made, [9, 9], 40)
            assert await ask(made, [3], 8) == [plain([3], 8)]

    run(day())


def test_policies_by_name() -> None:
    async def day() -> None:
        for text in ("sequence", "specinfer", "sequence(fixed=true,depth=4)", "specinfer(widths=3x1,shortest=1)"):
            async with engine(speculation=text) as made:
                prompt = list(range(20, 40)) * 2
                assert await ask(made, prompt, 60) == [plain(prompt, 60)]

    run(day())
