"""What S-LoRA and Punica decide, against brute force and cases worked out by hand."""

from __future__ import annotations

import random

import numpy as np
import pytest

from nubes.drivers.sim.llm import Instance, simulate_llm
from nubes.llm.models import step_model
from nubes.llm.models.facts import llm_facts
from nubes.llm.models.lora import blocks_of
from nubes.llm.policies.slora import EarlyAbort, need
from nubes.llm.scheduling.scheduler import Scheduler
from nubes.llm.scheduling.sequence import Sequence
from nubes.llm.scheduling.state import State
from nubes.papers.s_lora import Held, first_fit, rejected
from nubes.workloads.llm import load_llm


def brute(batch: list[tuple[int, int]]) -> int:
    """Token by token: the most that is held just before anybody ends."""
    return max(
        sum(current + step for remaining, current in batch if remaining >= step)
        for step in range(1, max(remaining for remaining, _ in batch) + 1)
    )


@pytest.mark.parametrize("seed", range(50))
def test_need_is_the_most_that_is_ever_held(seed: int) -> None:
    draw = random.Random(seed)
    batch = [(draw.randint(1, 30), draw.randint(1, 40)) for _ in range(draw.randint(1, 8))]
    assert need(sorted(batch, reverse=True)) == brute(batch)


def test_nobody_gives_way_under_s_lora_even_with_little_memory() -> None:
    model, facts = step_model("lora(llama-2-7b,gpu=a100)"), llm_facts("llama-2-7b")
    workload = load_llm("adapters(rate=20,length=20s,adapters=50,alpha=0.3,cv=4)", seed=1)
    sizes = {str(n): blocks_of(facts, [8, 16, 32, 64][n % 4]) for n in range(50)}
    for batching, calm in (("s-lora", True), ("orca(reserve=paged)", False)):
        scheduler = Scheduler(200, batching=batching, retention="none", adapters=sizes)
        outcome = simulate_llm(workload, [Instance(scheduler, model, 1e-4)])
        assert (outcome.preemptions == 0) == calm
        assert not np.isnan(outcome.end_s).any()


@pytest.mark.parametrize("distinct", [1, 3])
def test_clusters_have_so_many_adapters_at_most(distinct: int) -> None:
    workload = load_llm("adapters(rate=50,length=10s,adapters=30)", seed=2)
    scheduler = Scheduler(2000, batching=f"s-lora(distinct={distinct})", adapters=dict.fromkeys(map(str, range(30)), 4))
    seen = []

    def watch(instance: Instance, now: float) -> None:
        seen.append(len(instance.scheduler.state.adapters.held))

    outcome = simulate_llm(workload, [Instance(scheduler, step_model("lora(llama-2-7b)"))], watch=watch)
    assert max(seen) == distinct
    assert not np.isnan(outcome.end_s).any()


def test_one_adapter_at_a_time() -> None:
    workload = load_llm("adapters(rate=50,length=10s,adapters=5)", seed=2)
    scheduler = Scheduler(2000, batching="one-adapter", adapters=dict.fromkeys(map(str, range(5)), 4))
    running = []

    def watch(instance: Instance, now: float) -> None:
        running.append(len({s.adapter for s in instance.scheduler.state.decoding.values()}))

    simulate_llm(workload, [Instance(scheduler, step_model("lora(llama-2-7b)"))], watch=watch)
    assert max(running) == 1


def test_adapters_of_those_in_line_are_there_when_it_is_their_turn() -> None:
    """While one runs, the next one's adapter is copied: it joins one step later and the first never waits."""
    scheduler = Scheduler(100, adapters={"a": 3, "b": 5}, batching="orca(reserve=paged,max_seqs=1)")
    first, second = Sequence(10, 20, 8, adapter="a"), Sequence(20, 20, 8, adapter="b", arrived_s=1.0)
    scheduler.arrive(first, 0.0)
    scheduler.arrive(second, 1.0)
    step = scheduler.compose(1.0)
    assert step is not None
    assert not step.chunks, "nothing is there yet"
    assert [(fill.adapter, fill.nth) for fill in step.fills] == [("a", n) for n in range(3)] + [
        ("b", n) for n in range(5)
    ]
    scheduler.complete(step, 1.1)
    step = scheduler.compose(1.1)
    assert step is not None
    assert [chunk.sequence for chunk in step.chunks] == [first]
    assert not step.fills
    assert (step.load.adapter_rows, step.load.adapter_blocks) == (60, 3)
    scheduler.complete(step, 1.2)
    scheduler.finish(first, 1.2)
    step = scheduler.compose(1.2)
    assert step is not None
    assert [chunk.sequence for chunk in step.chunks] == [second]


def test_unused_adapters_go_before_anybody_has_to_give_way_and_the_oldest_first() -> None:
    scheduler = Scheduler(12, adapters={"a": 4, "b": 4}, batching="orca(reserve=paged)", retention="lru")
    for n, name in enumerate("ab"):
        sequence = Sequence(10 * n, 16, 1, adapter=name)
        scheduler.arrive(sequence, n)
        for _ in range(2):
            step = scheduler.compose(n)
            assert step is not None
            scheduler.complete(step, n)
        scheduler.finish(sequence, n)
    adapters = scheduler.state.adapters
    assert adapters.ready("a")
    assert adapters.ready("b")
    scheduler.arrive(Sequence(30, 7 * 16, 1), 3.0)
    step = scheduler.compose(3.0)
    assert step is not None
    assert not adapters.ready("a")
    assert adapters.found("a").count(None) == 3, "only as many blocks as were wanted"
    assert adapters.ready("b")


def test_early_abort_drops_who_is_too_late_and_turns_the_queue_while_more_come_than_go() -> None:
    policy, state = EarlyAbort(slo=6.0, spare=0.5, period=1.0), State(10, 16)
    for n in range(8):
        sequence = Sequence(n, 10, 10, arrived_s=float(n))
        sequence.rank = policy.rank(sequence, float(n))
        state.enqueue(sequence)
        late = policy.sheds(state, float(n))
        assert [s.id for s in late] == ([n - 6] if n >= 6 else []), "5.5 s have passed"
        for gone in late:
            state.waiting.remove(gone)
    assert policy.newest
    assert policy.rank(Sequence(9, 1, 1, arrived_s=8.0), 8.0) < policy.rank(Sequence(8, 1, 1, arrived_s=7.0), 8.0)
    state.waiting.clear()  # they were all admitted
    for now in range(9, 12):
        policy.sheds(state, float(now))
    assert not policy.newest


def test_early_abort_under_bursts_serves_more_in_time() -> None:
    model = step_model("lora(llama-2-7b,gpu=a100)")
    workload = load_llm("adapters(rate=12,length=40s,adapters=20,cv=4)", seed=3)
    shares = []
    for ordering in ("fcfs", "early-abort"):
        scheduler = Scheduler(
            1200, batching="s-lora", ordering=ordering, adapters=dict.fromkeys(map(str, range(20)), 4)
        )
        outcome = simulate_llm(workload, [Instance(scheduler, model)])
        shares.append(float(np.mean(np.nan_to_num(outcome.ttft_s, nan=np.inf) <= 6.0)))
    assert shares[1] > shares[0]


def test_a_split_memory_rejects_what_fits_the_whole() -> None:
    assert first_fit([(0, 3), (5, 3)], 2, 8) == 3
    assert first_fit([(0, 3), (5, 3)], 3, 8) is None
    trail = [Held({"a": 3}, 1, 1), Held({"a": 3, "b": 3}, 2, 1), Held({"b": 3}, 6, 1), Held({"b": 3, "c": 2}, 4, 2)]
    assert rejected(trail, 10) == 2  # b has no room beside a, and KV outgrows its half; c fits where a was


def test_an_adapter_weighs_4r_tokens_on_a_model_without_grouped_heads() -> None:
    assert [blocks_of(llm_facts("llama-2-7b"), rank) for rank in (8, 16, 32, 64)] == [2, 4, 8, 16]
