"""Pensieve: what goes first, what comes back, and that answers stay right whatever is dropped, copied or loaded."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nubes.drivers.sim.llm import Instance, simulate_llm
from nubes.kernel.errors import UsageError
from nubes.llm.models import step_model
from nubes.llm.policies.pensieve import Pensieve, interpolate, profiled
from nubes.llm.scheduling.blocks import Idle
from nubes.llm.scheduling.invariants import check
from nubes.llm.scheduling.scheduler import Scheduler
from nubes.llm.scheduling.sequence import Sequence
from nubes.workloads.llm import load_llm
from tests.llm.toy import ask, engine, plain


@given(
    st.lists(st.tuples(st.integers(1, 60), st.floats(0, 50), st.integers(0, 3)), min_size=1, max_size=40),
    st.integers(1, 40),
)
def test_the_lowest_value_goes_first(blocks: list[tuple[int, float, int]], count: int) -> None:
    idle = {nth: Idle(nth, nth, depth * 16, str(session), since) for nth, (depth, since, session) in enumerate(blocks)}
    count = min(count, len(idle))
    policy = Pensieve(chunk=32, balance=1000)

    def value(each: Idle) -> float:
        end = -(-each.depth // 32) * 32
        return (1 + end / 1000) / (60.0 - each.since_s)

    gone = list(policy.victims(idle, count, 60.0))
    assert len(gone) == len(set(gone)) == count
    kept = [value(each) for block, each in idle.items() if block not in gone]
    assert max(value(idle[block]) for block in gone) <= min(kept, default=1e9) * (1 + 1e-6)


def test_of_one_conversation_the_beginning_goes_first() -> None:
    idle = {nth: Idle(nth, nth, (nth + 1) * 32, "a", 1.0) for nth in reversed(range(8))}
    assert list(Pensieve().victims(idle, 3, 9.0)) == [0, 1, 2]
    assert list(Pensieve(by="lru").victims(idle, 3, 9.0)) == [7, 6, 5]


def test_whole_conversations_go_the_idlest_first() -> None:
    idle = {nth: Idle(nth, nth, 32 * nth + 32, "ab"[nth % 2], 1.0 + nth % 2) for nth in range(6)}
    assert set(Pensieve(by="conversation").victims(idle, 1, 9.0)) == {0, 2, 4}
    assert len(list(Pensieve(by="conversation").victims(idle, 4, 9.0))) == 6


def test_costs_come_from_a_profile_by_interpolation() -> None:
    profile = ((32, 1.0), (64, 2.0), (128, 6.0))
    assert [interpolate(profile, at) for at in (32, 48, 64, 96, 128, 256)] == pytest.approx([1, 1.5, 2, 4, 6, 14])
    points = profiled(step_model("opt(opt-13b,tp=1)"))
    assert [context for context, _ in points[:3]] == [32, 64, 128]
    assert [cost for _, cost in points] == sorted(cost for _, cost in points)


def test_unknown_order() -> None:
    with pytest.raises(UsageError, match="no order"):
        Pensieve(by="size")


def test_a_history_with_a_hole_is_two_chunks_of_one_step() -> None:
    """Its beginning was dropped, its middle is there: both ends are computed at once, and nothing else."""
    scheduler = Scheduler(
        12, block_size=4, host_blocks=0, retention="pensieve(chunk=4)", batching="orca(reserve=paged)"
    )
    keys = [("a", nth) for nth in range(10)]

    def turn(id: int, prompt: int, limit: int, of: list[tuple[str, int]], now: float) -> list[tuple[int, int]]:
        sequence = Sequence(id, prompt, limit, keys=of, session=of[0][0])
        scheduler.arrive(sequence, now)
        chunks = []
        while not scheduler.idle:
            step = scheduler.compose(now)
            assert step is not None
            chunks += [(chunk.start, chunk.end) for chunk in step.chunks]
            scheduler.complete(step, now)
            if sequence.generated >= limit:
                scheduler.finish(sequence, now)
        check(scheduler.state)
        return chunks

    assert turn(1, 24, 5, keys, 0.0) == [(0, 24)]
    assert turn(2, 26, 2, [("b", nth) for nth in range(10)], 1.0) == [(0, 26)]
    held = {scheduler.state.pool.keys[block] for block in scheduler.state.pool.idle}
    first = min(nth for session, nth in held if session == "a")
    assert first > 0, "the beginning of the first conversation gave way"
    assert turn(3, 34, 1, keys, 2.0) == [(0, 4 * first), (28, 34)]


@pytest.mark.parametrize("by", ["value", "lru", "conversation"])
@pytest.mark.parametrize("host_blocks", [0, 10, 200])
def test_answers_stay_right(by: str, host_blocks: int) -> None:
    async def all_of_it() -> None:
        draw = random.Random(f"{by} {host_blocks}")
        policy = f"pensieve(by={by},batch=4)"
        async with engine(blocks=40, retention=policy, host_blocks=host_blocks, batching="orca(reserve=paged)") as made:

            async def talk(name: str) -> None:
                history: list[int] = []
                for _ in range(4):
                    await asyncio.sleep(draw.random() * 0.02)
                    history += [draw.randrange(1, 200) for _ in range(draw.randint(5, 40))]
                    count = draw.randint(1, 20)
                    for answer in await ask(made, history, count, 1):
                        assert answer == plain(history, count)
                        history = history + answer

            await asyncio.gather(*(talk(str(nth)) for nth in range(12)))
            check(made.scheduler.state)
            assert made.scheduler.prefix_hits > 0
            tier = made.scheduler.tier
            if host_blocks:
                assert tier is not None
                assert tier.saved > 0
                assert host_blocks < 200 or tier.loaded > 0

    asyncio.run(asyncio.wait_for(all_of_it(), 60))


def test_more_is_kept_with_host_memory_and_moves_cost_time() -> None:
    workload = load_llm("chat-like(rate=2,length=300s,turns=5,think=20s,limit=4096)")
    model = step_model("opt(opt-13b,tp=1)")

    def cached(host_blocks: int, block_s: float = 1e-3, overlap: bool = True) -> tuple[float, float]:
        scheduler = Scheduler(1000, block_size=32, host_blocks=host_blocks, retention=Pensieve(profile=profiled(model)))
        served = simulate_llm(workload, [Instance(scheduler, model, block_s, overlap=overlap)])
        check(scheduler.state)
        return float(served.cached.sum() / workload.prompt.sum()), float(np.mean(served.ttft_s))

    alone, both = cached(0), cached(8000)
    assert both[0] > alone[0] + 0.1
    assert both[1] < alone[1]
    assert cached(8000, 1e-2, overlap=False)[1] > both[1]
