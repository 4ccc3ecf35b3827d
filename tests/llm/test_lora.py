"""Adapters in pages of the KV pool: every row comes out as if its adapter had been merged into the model."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from nubes.kernel.errors import UsageError
from nubes.llm.lora.adapter import TARGETS, Adapter, random_adapter, sizes, tokens
from nubes.llm.lora.segments import Placed, Segments, segments
from nubes.llm.runtime.rows import Rows, causal
from nubes.llm.spec import Shape
from tests.llm.lora_models import SHAPE, Model, model

BLOCKS = 160


def native(checkpoint: Model, format: str = "fp32", threads: int = 2, plain: bool = False) -> Any:
    from nubes.llm.runtime.build import NoCompiler
    from nubes.llm.runtime.native import NativeRuntime

    try:
        return NativeRuntime(checkpoint, format, BLOCKS, 16, threads, plain)  # type: ignore[arg-type]
    except NoCompiler as error:
        pytest.skip(str(error))


def runtimes(checkpoint: Model) -> dict[str, Any]:
    made = {"native": native(checkpoint), "plain": native(checkpoint, threads=3, plain=True)}
    try:
        from nubes.llm.runtime.torch import TorchRuntime

        made["torch"] = TorchRuntime(checkpoint, "fp32", BLOCKS, 16)
    except ImportError:
        pass
    return made


def place(runtime: Any, adapter: Adapter, free: list[int]) -> Placed:
    """In blocks from anywhere in the pool."""
    values = runtime.slots.pages.shape[1]
    blocks = [free.pop() for _ in range(adapter.blocks(values))]
    for nth, block in enumerate(blocks):
        runtime.place(adapter, nth, block)
    return own(Placed(adapter, blocks, values), adapter)


def own(placed: Any, adapter: Adapter) -> Any:
    placed.adapter = adapter
    return placed


def mixture(draw: random.Random, count: int, placed: list[Any], free: list[int]) -> tuple[Rows, list[int], Any]:
    """Sequences of one to nine rows, each of some adapter or none; the rows, the tokens, and who owns which."""
    parts, owners, counts = [], [], []
    for _ in range(count):
        rows = draw.choice([1, 1, 1, 2, 3, 5, 9])
        parts.append(([free.pop()], 0, rows))
        owners.append(draw.choice(placed))
        counts.append(rows)
    rows = causal(parts)
    with_lora = Rows(
        rows.positions, rows.slots, rows.visible, rows.sequence, rows.tables, rows.table_start, None,
        segments(owners, counts),
    )  # fmt: skip
    return (
        with_lora,
        [draw.randrange(SHAPE.vocab) for _ in range(sum(counts))],
        list(zip(owners, counts, parts, strict=True)),
    )


@pytest.mark.parametrize("seed", range(4))
def test_every_row_is_as_with_merged_weights(seed: int) -> None:
    draw = random.Random(seed)
    base = model(seed)
    adapters = [random_adapter(f"a{rank}", SHAPE, rank, seed) for rank in draw.sample([1, 3, 8, 13, 16, 24, 32, 64], 4)]
    adapters.append(random_adapter("some", SHAPE, 8, seed, targets=("q_proj", "v_proj")))
    for name, runtime in runtimes(base).items():
        free = random.Random(seed).sample(range(BLOCKS), BLOCKS)
        placed: list[Any] = [None, *(place(runtime, adapter, free) for adapter in adapters)]
        rows, text, who = mixture(random.Random(seed), 8, placed, free)
        outputs = np.arange(len(text), dtype=np.int32)
        got = np.asarray(runtime.step(np.array(text, np.int32), rows, outputs))
        at = 0
        for owner, count, _ in who:
            single = native(base if owner is None else base.merged(owner.adapter))
            alone = causal([([0], 0, count)])
            want = single.step(np.array(text[at : at + count], np.int32), alone, np.arange(count, dtype=np.int32))
            assert np.abs(got[at : at + count] - want).max() < 1e-3, f"{name}: rows of {owner and owner.adapter.name}"
            single.close()
            at += count
        runtime.close()


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_few_bits_change_a_row_no_more_with_an_adapter_than_without(format: str) -> None:
    base = model(1)
    adapter = random_adapter("a", SHAPE, 16, 1, np.float16)
    text, parts = np.arange(12, dtype=np.int32), [([1], 0, 12)]
    outputs = np.arange(12, dtype=np.int32)
    runtime = native(base, format)
    rows = causal(parts)
    plain = runtime.step(text, rows, outputs)
    off = np.abs(plain - native(base).step(text, rows, outputs)).mean()
    owner = place(runtime, adapter, list(range(40, 80)))
    lora = segments([owner], [12])
    adapted = runtime.step(text, causal(parts).__class__(*_fields(rows), lora=lora), outputs)
    merged = native(base.merged(adapter)).step(text, rows, outputs)
    assert np.abs(adapted - merged).mean() < 2 * off
    assert np.abs(adapted - plain).mean() > 5 * np.abs(adapted - merged).mean() or off > 0.05


def _fields(rows: Rows) -> tuple[Any, ...]:
    return rows.positions, rows.slots, rows.visible, rows.sequence, rows.tables, rows.table_start, rows.extra


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_one_product_against_numpy(half: bool, seed: int) -> None:
    """Random segmentations with holes: y += scale * x A^T B^T row by row, and nothing else is touched."""
    from nubes.llm.runtime.adapted import Product

    draw = np.random.default_rng(seed)
    shape = Shape(layers=1, hidden=576, heads=9, kv_heads=3, head_dim=64, ffn=32, vocab=32, context=64)
    dtype = np.float16 if half else np.float32
    pool = np.zeros((400, 1, 2, 3, 16 * 64), dtype)
    free = draw.permutation(400).tolist()
    owners: list[Any] = [None]
    for rank in (8, 16, 32, 64):
        adapter = random_adapter("a", shape, rank, seed, dtype)
        blocks = [free.pop() for _ in range(adapter.blocks(pool[0].size))]
        for nth, block in enumerate(blocks):
            piece = adapter.piece(nth, pool[0].size)
            pool[block].reshape(-1)[: piece.size] = piece
        owners.append(own(Placed(adapter, blocks, pool[0].size), adapter))
    who = [owners[i] for i in draw.integers(0, len(owners), 14)]
    counts = draw.integers(1, 8, 14).tolist()
    parts = segments(who, counts)
    assert parts is not None
    for target, (inputs, outputs) in sizes(shape).items():
        x = draw.standard_normal((sum(counts), inputs)).astype(np.float32)
        y = draw.standard_normal((sum(counts), outputs)).astype(np.float32)
        want, at = y.copy(), 0
        for owner, count in zip(who, counts, strict=True):
            if owner is not None:
                a, b = owner.adapter.matrices(0)[target]
                for row in range(at, at + count):
                    want[row] += owner.adapter.scale * (b @ (a @ x[row]))
            at += count
        for threads in (1, 2):
            with Product(shape, pool, parts, len(x), threads) as product:
                got = y.copy()
                product.run(0, TARGETS.index(target), x, got)
            assert np.abs(got - want).max() < 1e-4


def test_an_adapter_gives_back_the_matrices_it_was_made_of() -> None:
    adapter = random_adapter("a", SHAPE, 8, 3)
    again = random_adapter("a", SHAPE, 8, 3)
    for layer in range(SHAPE.layers):
        for target, (a, b) in adapter.matrices(layer).items():
            assert a.shape == (8, sizes(SHAPE)[target][0])
            assert b.shape == (sizes(SHAPE)[target][1], 8)
            assert (a == again.matrices(layer)[target][0]).all()
    assert adapter.key != again.key


def test_an_adapter_of_rank_r_takes_4r_tokens_where_every_head_has_its_own_keys() -> None:
    """As in S-LoRA, where a page holds a vector of the hidden size."""
    whole = Shape(layers=32, hidden=4096, heads=32, kv_heads=32, head_dim=128, ffn=11008, vocab=32000, context=4096)
    for rank in (8, 16, 32, 64):
        assert tokens(whole, rank) == 4 * rank


def test_segments_join_neighbours_and_leave_out_who_has_no_adapter() -> None:
    one = Placed(random_adapter("a", SHAPE, 8), range(random_adapter("a", SHAPE, 8).blocks(4096)), 4096)
    two = Placed(random_adapter("b", SHAPE, 8), range(random_adapter("b", SHAPE, 8).blocks(4096)), 4096)
    made = segments([None, one, one, None, one, two], [3, 4, 1, 2, 1, 1])
    assert made is not None
    assert made.first.tolist() == [3, 10, 11]
    assert made.rows.tolist() == [5, 1, 1]
    assert segments([None, None], [1, 2]) is None


def test_segments_that_reach_outside_are_refused() -> None:
    adapter = random_adapter("a", SHAPE, 8)
    count = adapter.blocks(2048)
    good = Placed(adapter, range(count), 2048)

    def of(first: list[int], rows: list[int]) -> Segments:
        return Segments(np.array(first, np.int32), np.array(rows, np.int32), (good,) * len(first))

    of([0, 2], [2, 1]).check(3, count)
    for first, rows in (([0], [4]), ([0, 1], [2, 1]), ([-1], [1]), ([0], [0])):
        with pytest.raises(UsageError):
            of(first, rows).check(3, count)
    with pytest.raises(UsageError):
        of([0], [1]).check(3, count - 1)
    with pytest.raises(UsageError):
        Placed(adapter, range(count + 1), 2048)


def test_threads_share_the_ranks_of_the_rows() -> None:
    from nubes.llm.runtime.adapted import shares

    def placed(rank: int) -> Placed:
        adapter = random_adapter("a", SHAPE, rank)
        return Placed(adapter, range(adapter.blocks(4096)), 4096)

    of = segments([placed(8), placed(64), placed(64)], [4, 2, 2])
    assert of is not None
    assert shares(of, 8, 2).tolist() == [0, 6, 8]  # 184 and 136 of 320; after five rows it would be 116 and 204
    for threads in (1, 2, 3, 16):
        bounds = shares(of, 8, threads)
        assert (bounds[0], bounds[-1], len(bounds)) == (0, 8, threads + 1)
        assert (bounds[1:] >= bounds[:-1]).all()
