"""The harness of the live reproductions, over a model that is not one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nubes.llm.policies.orca import PAPER
from nubes.papers import orca_live, paged_live, sarathi_live
from nubes.papers.context import Context
from nubes.papers.generating import Answer, ask, by_the_clock, prompts, saturated
from tests.llm.toy import engine, plain


def run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def test_answers_by_the_clock() -> None:
    async def scenario() -> list[Answer]:
        async with engine() as made:
            return await by_the_clock(made, [(0.2, [5, 6, 7], 4), (0.0, [8, 9], 1)])

    late, early = run(scenario())
    assert late.tokens == plain([5, 6, 7], 4)
    assert early.tokens == plain([8, 9], 1)
    assert late.sent_s - early.sent_s == pytest.approx(0.2, abs=0.15)
    assert len(late.gaps_s) == 3
    assert late.normalised_s == pytest.approx((late.told_s[-1] - late.sent_s) / 4)


def test_a_request_that_fails_is_no_answer() -> None:
    async def scenario() -> None:
        async with engine() as made:
            made.runtime.break_next = True
            await ask(made, [1] * 15, 9)

    with pytest.raises(RuntimeError, match="MemoryError"):
        run(scenario())


@pytest.mark.parametrize(("batching", "least", "most"), [("orca(max_len=64,max_seqs=3)", 2.5, 3), ("vllm", 3.5, 8)])
def test_what_an_engine_does_while_requests_wait(batching: str, least: float, most: float) -> None:
    async def scenario() -> Any:
        async with engine(blocks=16, batching=batching) as made:
            return await saturated(made, [(0.0, [at + 1] * 30, 30) for at in range(60)], 0.001)

    found = run(scenario())
    assert least <= found.running <= most
    assert found.rate > 0


def test_prompts_are_pieces_of_a_text() -> None:
    text = list(range(1000))
    for piece, length in zip(prompts(text, [5, 900], 3), [5, 900], strict=True):
        assert piece == text[piece[0] : piece[0] + length]
    assert prompts(text, [5, 6], 3) == prompts(text, [5, 6], 3) != prompts(text, [5, 6], 4)


@pytest.mark.parametrize("module", [orca_live, paged_live, sarathi_live])
def test_without_a_model_live_claims_are_not_measured(
    module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(module, "missing", lambda: "there is no model")
    ctx = Context(PAPER, module.CLAIMS, "live", 1, None, False, tmp_path, None)
    results = list(module.run(ctx))
    assert [result.claim for result in results] == [claim.text for claim in module.CLAIMS]
    assert all(result.holds is None and "there is no model" in result.workload for result in results)
