"""The engine over a toy model: whatever is batched, paged, shared, cut, copied or thrown out, the answers are right."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from nubes.kernel.errors import Overloaded, UsageError
from nubes.llm.errors import ContextTooLong
from nubes.llm.scheduling.invariants import check
from nubes.llm.spec import Delta, Request, Sampling
from tests.llm.toy import ask, engine, plain

BATCHINGS = [
    "sarathi(budget=24)",
    "sarathi",
    "vllm",
    "orca(reserve=oracle)",
    "orca(reserve=paged)",
    "static(reserve=oracle)",
]


def run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("preemption", ["recompute", "swap", "cheaper(row_s=1,block_s=4)"])
@pytest.mark.parametrize("retention", ["lru", "none"])
def test_answers_are_those_of_a_plain_loop(batching: str, preemption: str, retention: str) -> None:
    async def all_of_it() -> None:
        draw = random.Random(batching + retention)
        async with engine(blocks=40, batching=batching, preemption=preemption, retention=retention) as made:
            shared = [draw.randrange(1, 200) for _ in range(40)]

            async def one() -> None:
                await asyncio.sleep(draw.random() * 0.05)
                prompt = shared[: draw.choice([0, 16, 33, 40])] + [
                    draw.randrange(1, 200) for _ in range(draw.randint(1, 60))
                ]
                count, n = draw.randint(1, 60), draw.choice([1, 1, 3])
                for answer in await ask(made, prompt, count, n):
                    assert answer == plain(prompt, count)

            await asyncio.gather(*(one() for _ in range(40)))
            check(made.scheduler.state)
            assert made.scheduler.state.pool.used == 0
            if "oracle" not in batching:
                assert made.scheduler.preemptions > 0
                assert (made.scheduler.swaps > 0) == (preemption != "recompute")
            assert (made.scheduler.prefix_hits > 0) == (retention == "lru")
            assert made.runtime.copies > 0

    run(all_of_it())


def test_a_shared_prompt_is_computed_once() -> None:
    async def twice() -> None:
        async with engine() as made:
            prompt = list(range(1, 101))
            await ask(made, prompt, 3)
            rows = made.runtime.rows
            await ask(made, prompt, 3)
            assert made.runtime.rows - rows == 100 - 96 + 2
            await ask(made, prompt, 3, cache_salt="other")
            assert made.runtime.rows - rows > 100

    run(twice())


def test_who_leaves_frees_blocks_at_once() -> None:
    async def leave() -> None:
        async with engine() as made:
            request = Request(
                id="r", prompt=[1, 2, 3], sampling=Sampling(max_tokens=400, temperature=0, ignore_eos=True)
            )
            made.runtime.running.clear()
            made.runtime.ahead = 3  # steps before the engine waits for us, so that it cannot be done before we leave
            deltas = made.generate(request)
            await anext(deltas)
            await deltas.aclose()
            never = made.generate(request)  # nobody ever looks at it
            await never.aclose()
            made.runtime.running.set()
            for _ in range(200):
                if made.scheduler.idle and not made._jobs:
                    break
                await asyncio.sleep(0.01)
            assert made.scheduler.state.pool.used == 0
            assert made.stats().generation_tokens < 400

    run(leave())


def test_a_poisoned_prompt_ends_with_an_error_and_touches_nobody() -> None:
    async def poison() -> None:
        async with engine(poison=250) as made:
            bad = Request(id="bad", prompt=[5, 250, 6] * 20, sampling=Sampling(max_tokens=5, temperature=0))

            async def fails() -> Delta:
                return [delta async for delta in made.generate(bad)][-1]

            last, (good,) = await asyncio.gather(fails(), ask(made, [1, 2, 3], 30))
            assert last.finish == "error"
            assert "not a number" in last.error
            assert good == plain([1, 2, 3], 30)
            assert not made.scheduler.state.pool.index.keys() & {None}
            last = await fails()  # nothing of it was kept for others
            assert last.finish == "error"
            assert last.cached == 0

    run(poison())


def test_a_step_that_fails_ends_what_ran_and_the_engine_goes_on() -> None:
    async def fail() -> None:
        async with engine() as made:
            made.runtime.break_next = True
            request = Request(id="r", prompt=[1, 2, 3], sampling=Sampling(max_tokens=5, temperature=0))
            last = [delta async for delta in made.generate(request)][-1]
            assert last.finish == "error"
            assert "MemoryError" in last.error
            assert (await ask(made, [1, 2, 3], 5))[0] == plain([1, 2, 3], 5)

    run(fail())


def test_refusals() -> None:
    async def refuse() -> None:
        async with engine(max_waiting=2, blocks=8) as made:

            def asked(prompt: list[int], **settings: Any) -> Any:
                return made.generate(Request(id="r", prompt=prompt, sampling=Sampling(**settings)))

            with pytest.raises(ContextTooLong, match="600.*512"):
                asked([1] * 600)
            with pytest.raises(ContextTooLong):
                asked([1] * 500, max_tokens=100)
            with pytest.raises(UsageError, match="empty"):
                asked([])
            with pytest.raises(UsageError, match="300"):
                asked([300])
            with pytest.raises(UsageError, match="n=0"):
                made.generate(Request(id="r", prompt=[1], n=0))
            with pytest.raises(ContextTooLong, match="KV memory of 128"):
                asked([1] * 100, max_tokens=100)
            waiting = [asked([1] * 60, max_tokens=60, ignore_eos=True) for _ in range(2)]
            with pytest.raises(Overloaded):
                for _ in range(10):
                    waiting.append(asked([1] * 60, max_tokens=60, ignore_eos=True))
            for deltas in waiting:
                await deltas.aclose()

    run(refuse())


def test_stopping_ends_what_waits() -> None:
    async def stop() -> None:
        async with engine() as made:
            request = Request(id="r", prompt=[1], sampling=Sampling(max_tokens=500, temperature=0, ignore_eos=True))
            deltas = made.generate(request)
            await anext(deltas)
            closing = asyncio.create_task(asyncio.to_thread(made.close))
            rest = [delta async for delta in deltas]
            await closing
            assert rest[-1].finish == "abort"
            assert "stopped" in rest[-1].error

    run(stop())


def test_a_frozen_engine_says_so() -> None:
    async def freeze() -> None:
        async with engine() as made:
            await ask(made, [1], 2)
            assert made.stats().stalled_s == 0.0
            step, gate = made.runtime.step, asyncio.Event()
            loop = asyncio.get_running_loop()

            def stuck(*args: Any) -> Any:
                asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()
                return step(*args)

            made.runtime.step = stuck
            task = asyncio.create_task(ask(made, [1], 2))
            await asyncio.sleep(0.3)
            assert made.stats().stalled_s > 0.2
            gate.set()
            await task
            assert made.stats().stalled_s == 0.0

    run(freeze())
