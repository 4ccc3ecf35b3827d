"""The real model with guesses: greedy answers to the token, and more tokens than passes."""

from __future__ import annotations

import pytest

from nubes.papers.generating import missing, opened
from nubes.papers.specinfer_live import CHAIN, TREE, answers, chats

if missing():
    pytest.skip(missing(), allow_module_level=True)


@pytest.mark.parametrize("count", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_greedy_answers_are_those_of_plain_decoding(count: int) -> None:
    checkpoint, runtime = opened("fp32", 8192)
    asked = chats(checkpoint, count, 1, 20, 80 if count < 100 else 250)
    tokens = 16 if count < 100 else 96
    plain, _, steps = answers(checkpoint, runtime, asked, "off", 8, tokens)
    assert steps.tokens == steps.passes == count * (tokens - 1)
    for speculation in (TREE, CHAIN, "specinfer")[: 3 if count == 100 else 1]:
        found, _, steps = answers(checkpoint, runtime, asked, speculation, 8, tokens)
        assert found == plain
        assert steps.tokens == count * (tokens - 1)
        assert speculation == "specinfer" or steps.tokens > 1.1 * steps.passes
    runtime.close()
