"""What PagedAttention, Orca and Sarathi-Serve decide, on cases worked out by hand, and what their steps cost."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nubes.drivers.sim.llm import Instance, Served, pipelined, simulate_llm
from nubes.drivers.sim.llm.stages import Stages
from nubes.kernel.errors import UsageError
from nubes.llm.models import step_model
from nubes.llm.policies.vllm import Cheaper
from nubes.llm.scheduling.load import Load, StepModel
from nubes.llm.scheduling.scheduler import Scheduler
from nubes.llm.scheduling.sequence import Sequence
from nubes.llm.scheduling.step import Step
from nubes.llm.scheduling.tuning import tune
from nubes.papers.paging import recovery_s, sampled
from nubes.papers.serving import tbt_s
from nubes.workloads.llm import LLMWorkload


@dataclass(frozen=True)
class Plain:
    """A step takes a second, and a hundredth of one for each row."""

    name: str = "plain"
    kv_tokens: int = 10_000
    kv_bytes: int = 1
    weight_bytes: int = 1
    gpu: str = "none"
    devices: int = 1
    stages: int = 1

    def seconds(self, load: Load) -> float:
        return 1.0 + 0.01 * load.rows

    def describe(self) -> str:
        return self.name


@functools.cache
def profiled() -> StepModel:
    return step_model("lin(llama-3-8b)")


def workload(*requests: tuple[float, int, int]) -> LLMWorkload:
    """(arrival, prompt, output) of each."""
    when, prompt, output = (np.array(column) for column in zip(*requests, strict=True))
    return LLMWorkload("made", "made", when.astype(float), prompt, output, 100.0)


def simulated(batching: str, *requests: tuple[float, int, int]) -> Served:
    scheduler = Scheduler(1000, batching=batching, retention="none")
    return simulate_llm(workload(*requests), [Instance(scheduler, Plain())])


def begun(batching: str, *lengths: tuple[int, int], decodes: int = 2) -> tuple[Scheduler, Step]:
    """A scheduler whose sequences have decoded so many tokens, and its next step."""
    scheduler = Scheduler(1000, batching=batching, retention="none")
    for at, (prompt, limit) in enumerate(lengths):
        scheduler.arrive(Sequence(at, prompt, limit), 0.0)
    done = 0
    while True:
        step = scheduler.compose(0.0)
        assert step is not None
        if done == decodes:
            return scheduler, step
        scheduler.batching.passes(step, scheduler.state)
        scheduler.complete(step, 0.0)
        done += step.decodes
        for sequence in list(scheduler.state.decoding.values()):
            if sequence.generated == sequence.limit:
                scheduler.finish(sequence, 0.0)


# -- Orca and static batches --------------------------------------------------------------------------------------------


def test_a_static_batch_is_padded_and_keeps_the_rows_of_those_that_ended() -> None:
    scheduler = Scheduler(1000, batching="static", retention="none")
    for at, (prompt, limit) in enumerate([(10, 2), (30, 9)]):
        scheduler.arrive(Sequence(at, prompt, limit), 0.0)
    step = scheduler.compose(0.0)
    assert step is not None
    assert scheduler.batching.passes(step, scheduler.state) == [Load.of([(30, 0)] * 2)]
    assert step.load == Load.of([(10, 0), (30, 0)]), "an engine with ragged batches computes what is there"
    scheduler, step = begun("static", (10, 2), (30, 9))
    assert step.load.decodes == 1
    assert scheduler.batching.passes(step, scheduler.state) == [Load(decodes=2, decode_context=2 * 33)]


def test_a_static_batch_in_micro_batches_takes_every_stage() -> None:
    scheduler, step = begun("static(micro=4)", *[(10, 9)] * 6)
    assert scheduler.batching.passes(step, scheduler.state) == [Load(decodes=2, decode_context=2 * 13)] * 4


def test_a_static_batch_lasts_until_its_longest_member_ends() -> None:
    served = simulated("static", (0.0, 10, 2), (0.0, 30, 5), (0.5, 10, 1))
    begins = 1.6  # 60 rows with padding
    assert served.first_s[:2] == pytest.approx(begins)
    assert served.end_s[0] == pytest.approx(begins + 1.02)
    assert served.end_s[1] == pytest.approx(begins + 4 * 1.02), "two rows to the end"
    assert served.begun_s[2] == pytest.approx(served.end_s[1])


def test_iterations_take_newcomers_at_once() -> None:
    served = simulated("orca(reserve=oracle)", (0.0, 30, 5), (0.5, 10, 1))
    assert served.begun_s[1] == served.first_s[0] == pytest.approx(1.3)
    assert served.end_s[1] == pytest.approx(1.3 + 1.11), "its prompt shares an iteration with a decode"


def test_without_selective_batching_every_length_is_a_pass() -> None:
    scheduler, step = begun("orca(selective=false)", (10, 9), (10, 9), (30, 9), (12, 1))
    assert scheduler.batching.passes(step, scheduler.state) == [
        Load(decodes=2, decode_context=2 * 13),
        Load(decodes=1, decode_context=33),
    ]
    served = simulated("orca(reserve=oracle,selective=false)", (0.0, 10, 2), (0.0, 10, 2), (0.0, 30, 2))
    prompts = 1.2 + 1.3
    assert served.first_s == pytest.approx(prompts)
    assert served.end_s == pytest.approx(prompts + 1.02 + 1.01)


# -- Sarathi-Serve ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batching", "rows"),
    [
        ("sarathi(budget=16)", [(True, 14), (True, 14), (True, 12)]),
        ("sarathi(budget=16,chunked=false)", [(True, 40)]),
        ("sarathi(budget=16,hybrid=false)", [(True, 0), (False, 16), (True, 0), (False, 16), (True, 0), (False, 8)]),
        ("vllm", [(False, 40)]),
    ],
)
def test_how_a_prompt_joins_two_decodes(batching: str, rows: list[tuple[bool, int]]) -> None:
    scheduler = Scheduler(1000, batching=batching, retention="none")
    for at in range(2):
        scheduler.arrive(Sequence(at, 8, 50), 0.0)
    while len(scheduler.state.decoding) < 2:
        step = scheduler.compose(0.0)
        assert step is not None
        scheduler.complete(step, 0.0)
    scheduler.arrive(Sequence(2, 40, 50), 0.0)
    seen = []
    while scheduler.state.waiting or scheduler.state.prefilling:
        step = scheduler.compose(0.0)
        assert step is not None
        seen.append((step.decodes, step.load.prefill_rows))
        scheduler.complete(step, 0.0)
    assert seen == rows


def test_chunks_keep_gaps_short() -> None:
    requests = [(0.0, 4, 60), *((5.0 + 20 * at, 400, 2) for at in range(3))]
    whole, cut = (simulated(policy, *requests) for policy in ("vllm", "sarathi(budget=50)"))
    assert tbt_s(whole, 1.0) == pytest.approx(5.0 + 1.02), "a prompt of 400 rows, then the decode"
    assert tbt_s(cut, 1.0) == pytest.approx(1.5)


@settings(deadline=None)
@given(st.floats(0.03, 0.6), st.integers(0, 200), st.integers(0, 8000), st.sampled_from([16, 128]))
def test_a_tuned_budget_is_the_largest_that_is_fast_enough(slo_s: float, decodes: int, context: int, tile: int) -> None:
    model = profiled()

    def fast(budget: int) -> bool:
        return model.seconds(Load.of([(budget - decodes, context)], [context] * decodes)) <= slo_s

    try:
        budget = tune(model, slo_s, decodes, context, tile)
    except UsageError:
        assert not fast((decodes // tile + 1) * tile)
        return
    assert budget % tile == 0
    assert budget > decodes
    assert fast(budget)
    assert not fast(budget + tile) or budget + tile > 16_384


# -- pipelines ----------------------------------------------------------------------------------------------------------


def test_steps_follow_each_other_through_the_stages() -> None:
    stages = Stages(3)
    assert stages.run(0.0, 1.0) == 3.0
    assert stages.run(0.0, 2.0) == 7.0, "1 to 3, 3 to 5, 5 to 7"
    assert stages.run(3.0, 1.0) == 8.0, "behind it in every stage"
    assert stages.run(10.0, 1.0) == 13.0
    assert stages.active_s == 8.0 + 3.0, "from 8 to 10 there was nothing to do"
    assert stages.bubbles == pytest.approx(1 - 15 / 33)


def test_equal_steps_leave_no_bubbles_once_the_pipeline_is_full() -> None:
    made = pipelined(Plain(stages=4), lambda: Scheduler(100, batching="orca(reserve=paged)", retention="none"))
    served = simulate_llm(workload(*[(0.0, 10, 200)] * 4), made)
    assert len(made) == 4
    assert served.end_s.max() - served.first_s.max() == pytest.approx(199 * 4 * 1.01)
    stages = made[0].stages
    assert stages is not None
    assert stages.bubbles < 0.01


# -- memory -------------------------------------------------------------------------------------------------------------


def test_samples_of_a_prompt_share_all_but_what_they_write() -> None:
    assert sampled(40, 9, 4) == (2 + 4, 3), (
        "two full blocks; the half one is copied for all but one, the last token has no KV"
    )
    assert sampled(32, 9, 4) == (2 + 4, 0)
    assert sampled(32, 8, 1) == (3, 0)


def test_what_giving_way_costs() -> None:
    def block_s(size: int) -> float:
        return 1.0

    model = Plain()
    assert recovery_s(model, block_s, "swap", 16, 32) == 4.0, "two blocks out and in"
    assert recovery_s(model, block_s, "recompute", 16, 32) == pytest.approx(1.33), "33 rows: one was generated"
    assert recovery_s(model, block_s, "cheaper(row_s=0.01,block_s=1,step_s=1)", 16, 32) == pytest.approx(1.33)
    assert recovery_s(model, block_s, "cheaper(row_s=0.01,block_s=1,step_s=4)", 16, 32) == 4.0


@settings(deadline=None)
@given(st.integers(1, 500), st.floats(0, 1), st.floats(0, 1), st.floats(0, 10))
def test_the_cheaper_way_is_chosen(tokens: int, row_s: float, block_s: float, step_s: float) -> None:
    sequence = Sequence(0, tokens, 9)
    sequence.blocks = list(range(-(-tokens // 16)))
    scheduler = Scheduler(10)
    swaps = Cheaper(row_s, block_s, step_s).swaps(sequence, scheduler.state)
    assert swaps == (2 * block_s * len(sequence.blocks) < step_s + row_s * tokens)
