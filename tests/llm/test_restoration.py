"""Dropped KV comes back: plans against all there are, states through files, and the KV of a random model."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nubes.kernel.errors import NotFound
from nubes.kernel.policy import make
from nubes.llm.cache.chunks import CHUNK, ChunkStore
from nubes.llm.cache.expanded import Expanded
from nubes.llm.cache.restoration import Costs, Plan, seconds, stored_bytes
from nubes.llm.cache.restoring import Restorer, measured
from nubes.llm.models import llm_facts, step_model
from nubes.llm.models.states import costs_of
from nubes.llm.runtime.rows import causal
from nubes.llm.spec import Shape
from tests.llm.runtime_models import Random

SHAPE = Shape(layers=4, hidden=64, heads=4, kv_heads=2, head_dim=32, ffn=96, vocab=101, context=256)


def test_a_plan_worked_out_by_hand() -> None:
    costs = Costs(project_s=1, hidden_s=3, token_s=8, kv_s=6)
    assert seconds(Plan(kv=4), costs) == 24
    assert seconds(Plan(tokens=4), costs) == 32
    assert seconds(Plan(hidden=4), costs) == 13  # four loads, and the last projection
    assert seconds(Plan(tokens=1, hidden=3), costs) == 11  # the first is ready at 8, so is the second load: 9, 10, 11
    assert make("restoration", "hcache").plan(4, costs).tokens == 1
    slow = Costs(project_s=4, hidden_s=1, token_s=24, kv_s=2)
    assert seconds(Plan(hidden=4), slow) == 17
    assert seconds(Plan(hidden=2, kv=2), slow) == 9
    assert make("restoration", "hcache").plan(4, slow).kv > 0


@given(st.floats(0.01, 10), st.floats(0.01, 10), st.floats(1.0, 12.0), st.floats(1.05, 4.0), st.integers(1, 80))
def test_the_plan_is_as_good_as_any(project: float, hidden: float, more: float, kv: float, layers: int) -> None:
    """Against every number of layers from their inputs. A pipeline of few layers has to fill: hence the third term."""
    costs = Costs(project, hidden, project * more, hidden * kv)
    plan = make("restoration", "hcache").plan(layers, costs)
    assert plan.tokens + plan.hidden + plan.kv == layers
    assert min(plan.tokens, plan.hidden, plan.kv) == 0
    every = [Plan(tokens=layers - n, hidden=n) for n in range(layers + 1)]
    every += [Plan(hidden=n, kv=layers - n) for n in range(layers + 1)]
    assert seconds(plan, costs) <= 1.02 * min(seconds(each, costs) for each in every) + project + hidden


@pytest.mark.parametrize(("tokens", "link"), list(product((512, 4096, 16_384), (7e9, 14e9, 28e9, 32e9))))
def test_the_plan_on_a_device(tokens: int, link: float) -> None:
    model, llm = step_model("lin(llama-2-7b,gpu=a100)"), llm_facts("llama-2-7b")
    costs = costs_of(model, llm, tokens, link)
    assert costs.kv_bytes == 2 * costs.hidden_bytes
    plan = make("restoration", "hcache").plan(llm.layers, costs)
    every = [Plan(tokens=32 - n, hidden=n) for n in range(33)] + [Plan(hidden=n, kv=32 - n) for n in range(33)]
    assert seconds(plan, costs) <= 1.02 * min(seconds(each, costs) for each in every)


def test_few_kv_heads_and_kv_is_loaded() -> None:
    costs = costs_of(step_model("lin(llama-3-8b,gpu=a100)"), llm_facts("llama-3-8b"), 2048, 7e9)
    plan = make("restoration", "hcache").plan(32, costs)
    assert plan.kv == 32
    assert "few KV heads" in plan.why
    assert stored_bytes(plan, costs) == 32 * costs.kv_bytes


def test_chunks_come_back_from_their_files(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path, files=3)
    draw = np.random.default_rng(0)
    whole = {name: draw.standard_normal((2, 150, 8)).astype(np.float32) for name in "ab"}
    at = {"a": 0, "b": 0}
    while min(at.values()) < 150:
        name = str(draw.choice([each for each in "ab" if at[each] < 150]))
        end = min(150, at[name] + int(draw.integers(1, 70)))
        store.save(name, 5, whole[name][:, at[name] : end])
        at[name] = end
    for name in "ab":
        store.flush(name)
        for layer in range(2):
            assert (store.read(name, 5 + layer) == whole[name][layer]).all()
    assert store.bytes == 2 * 2 * 150 * 8 * 4
    assert all(path.stat().st_size >= CHUNK * 8 * 4 for path in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 3
    store.drop("a")
    with pytest.raises(NotFound):
        store.read("a", 5)
    assert store.rows("b", 6) == 150
    store.close()


@pytest.mark.parametrize(
    "plan", [Plan(hidden=4), Plan(tokens=1, hidden=3), Plan(hidden=3, kv=1), Plan(kv=4), Plan(tokens=4)]
)
@pytest.mark.parametrize("expanded", [False, True])
def test_restored_kv_is_what_was_there(tmp_path: Path, plan: Plan, expanded: bool) -> None:
    from nubes.llm.runtime.torch import TorchRuntime

    pytest.importorskip("torch", reason="the runtime is PyTorch's")
    checkpoint = Expanded(Random(SHAPE)) if expanded else Random(SHAPE)
    runtime = TorchRuntime(checkpoint, "fp32", 12, 16)
    store = ChunkStore(tmp_path)
    restorer = Restorer(runtime, store, plan)
    tokens = np.random.default_rng(1).integers(0, 101, 130).astype(np.int32)
    table = [3, 1, 4, 0, 5, 9, 2, 6, 8]
    for start, end in ((0, 70), (70, 129), (129, 130)):
        kept = runtime.kv.new_zeros((4, end - start, 64))
        rows = causal([(table, start, end - start)])
        runtime.step(tokens[start:end], rows, np.zeros(1, np.int32), kept)
        restorer.save("one", kept.numpy(), table, start)
    restorer.flush("one")
    before = runtime.kv.clone()
    runtime.kv[:] = 0
    restorer.restore("one", tokens, table)
    assert float((runtime.kv - before).abs().max()) < 1e-4
    costs = measured(runtime, tokens, table, 1e9, 1)
    assert store.bytes == stored_bytes(plan, costs)
    restorer.close()
    store.close()


def test_an_expanded_model_computes_the_same() -> None:
    pytest.importorskip("torch", reason="the runtime is PyTorch's")
    from nubes.llm.runtime.torch import TorchRuntime

    tokens, outputs = np.arange(40, dtype=np.int32), np.array([39], np.int32)
    logits = [
        TorchRuntime(checkpoint, "fp32", 4, 16).step(tokens, causal([(range(4), 0, 40)]), outputs)
        for checkpoint in (Random(SHAPE), Expanded(Random(SHAPE)))
    ]
    assert float((logits[0] - logits[1]).abs().max()) < 1e-4
    assert Expanded(Random(SHAPE)).shape.kv_heads == 4
