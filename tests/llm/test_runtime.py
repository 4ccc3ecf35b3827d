"""The runtimes compute what `transformers` does, however rows are cut, mixed and masked."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.runtime_models import SHAPES, SMALL, Random
from nubes.kernel.errors import UsageError
from nubes.llm.runtime.build import NoCompiler, library
from nubes.llm.runtime.native import NativeRuntime
from nubes.llm.runtime.rows import Rows, causal
from nubes.llm.spec import Shape

try:
    library()
except NoCompiler as missing:
    pytest.skip(str(missing), allow_module_level=True)

BLOCKS = 24


def tokens_of(count: int, seed: int = 0, vocab: int = SMALL.vocab) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab, count).astype(np.int32)


def everything(rows: Rows) -> np.ndarray:
    return np.arange(len(rows), dtype=np.int32)


def join(*parts: Rows) -> Rows:
    """Rows of several sequences in one step."""
    starts = np.cumsum([0] + [len(part.tables) for part in parts])
    return Rows(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("positions", "slots", "visible")),
        np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts]),
        np.concatenate([part.tables for part in parts]),
        starts.astype(np.int32),
        np.concatenate([np.zeros(len(part), np.uint64) if part.extra is None else part.extra for part in parts]),
    )


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square difference, as a share of b's."""
    return float(np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2)))


@pytest.fixture(params=["fp32", "int8", "int4"])
def runtime(request: pytest.FixtureRequest) -> NativeRuntime:
    return NativeRuntime(Random(SMALL), request.param, blocks=BLOCKS)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.heads}x{s.head_dim}/{s.kv_heads}")
def test_logits_are_those_of_transformers(shape: Shape) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from nubes.llm.runtime.torch import TorchRuntime

    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=shape.vocab,
            hidden_size=shape.hidden,
            intermediate_size=shape.ffn,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            max_position_embeddings=shape.context,
            rms_norm_eps=shape.norm_eps,
            tie_word_embeddings=shape.tied,
            rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        )
    ).eval()
    checkpoint = Random(shape)
    state = {
        name: torch.tensor(checkpoint.tensor(name))
        for name in model.state_dict()
        if name != "lm_head.weight" or not shape.tied
    }
    if shape.tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    prompts = [tokens_of(n, n, shape.vocab) for n in (37, 100, 1, 16)]
    with torch.no_grad():
        wanted = [model(torch.tensor(prompt[None]).long()).logits[0].numpy() for prompt in prompts]
    free = np.random.default_rng(1).permutation(BLOCKS).astype(np.int32)
    tables = [free[0:3], free[3:10], free[10:11], free[11:12]]
    for runtime in (NativeRuntime(checkpoint, "fp32", BLOCKS), TorchRuntime(checkpoint, "fp32", BLOCKS)):
        runtime.kv[:] = float("nan")  # what blocks held before is nobody's business
        done = [0, 0, 0, 0]
        for counts in ((20, 64, 1, 0), (16, 0, 0, 15), (1, 36, 0, 1)):
            rows = causal((tables[i], done[i], n) for i, n in enumerate(counts))
            fed = np.concatenate([prompts[i][done[i] : done[i] + n] for i, n in enumerate(counts)])
            got = np.asarray(runtime.step(fed, rows, everything(rows)))
            for i, n in enumerate(counts):
                np.testing.assert_allclose(got[rows.sequence == i], wanted[i][done[i] : done[i] + n], atol=1e-3)
                done[i] += n


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_rows_give_what_pytorch_gives(data: st.DataObject) -> None:
    """Whatever the cuts, the order of rows, and the masks: the values and the cache are those of the reference."""
    pytest.importorskip("torch")
    from nubes.llm.runtime.torch import TorchRuntime

    native, torch = _cached(NativeRuntime, threads=1), _cached(TorchRuntime)
    free = data.draw(st.permutations(range(BLOCKS)))
    parts, used = [], 0
    for seed in range(data.draw(st.integers(1, 4))):
        past, count = data.draw(st.integers(0, 70)), data.draw(st.integers(1, 40))
        table = free[used : (used := used + -(-(past + count) // 16))]
        if past:
            for runtime in (native, torch):
                runtime.step(tokens_of(past, seed), causal([(table, 0, past)]), np.zeros(0, np.int32))
        rows = causal([(table, past, count)])
        if data.draw(st.booleans()):  # a tree: rows see what was there and some of those before them
            masks = [data.draw(st.integers(0, (1 << i) - 1)) | 1 << i for i in range(count)]
            rows = replace(rows, visible=np.full(count, past, np.int32), extra=np.array(masks, np.uint64))
        parts.append(rows)
    rows = join(*parts)
    order = np.array(data.draw(st.permutations(range(len(rows)))))
    per_row = ("positions", "slots", "visible", "sequence", "extra")
    rows = replace(rows, **{name: getattr(rows, name)[order] for name in per_row})
    fed = tokens_of(len(rows), 7)
    np.testing.assert_allclose(
        native.step(fed, rows, everything(rows)), torch.step(fed, rows, everything(rows)), atol=1e-3
    )
    np.testing.assert_allclose(native.slots.pages, torch.slots.pages, atol=1e-3)


_made: dict[type, object] = {}


def _cached(kind: type, **options: int):  # type: ignore[no-untyped-def]
    made = _made.setdefault(kind, kind(Random(SMALL), "fp32", blocks=BLOCKS, **options))
    made.kv[:] = 0
    return made


def test_chunks_give_what_the_whole_gives(runtime: NativeRuntime) -> None:
    fed, table = tokens_of(90), np.arange(6)
    whole = runtime.step(fed, causal([(table, 0, 90)]), np.arange(90, dtype=np.int32))
    runtime.kv.view(np.uint8)[:] = 255  # as floats, NaN
    pieces = []
    for start, count in ((0, 33), (33, 1), (34, 50), (84, 6)):
        rows = causal([(table, start, count)])
        pieces.append(runtime.step(fed[start : start + count], rows, everything(rows)))
    np.testing.assert_array_equal(np.concatenate(pieces), whole)  # to the last bit, whatever the steps were


def test_a_tree_gives_what_its_branches_give_apart(runtime: NativeRuntime) -> None:
    """Past of 20 tokens, then a root with two children, one of which has a child: slots 20, 21, 22, 23."""
    past, tree = tokens_of(20), tokens_of(4, 1)
    branches = {1: [0, 1], 3: [0, 2, 3]}
    runtime.step(past, causal([(np.arange(2), 0, 20)]), np.zeros(0, np.int32))
    rows = Rows(
        np.array([20, 21, 21, 22], np.int32),
        np.array([20, 21, 22, 23], np.int32),
        np.full(4, 20, np.int32),
        np.zeros(4, np.int32),
        np.arange(2, dtype=np.int32),
        np.array([0, 2], np.int32),
        np.array([0b1, 0b11, 0b101, 0b1101], np.uint64),
    )
    together = runtime.step(tree, rows, everything(rows))
    for leaf, path in branches.items():
        fed = np.concatenate([past, tree[path]])
        apart = runtime.step(fed, causal([(np.arange(2, 4), 0, len(fed))]), np.array([len(fed) - 1], np.int32))
        np.testing.assert_allclose(together[leaf], apart[0], atol=1e-4)


def test_some_rows_recomputed_change_nothing(runtime: NativeRuntime) -> None:
    fed, table = tokens_of(60), np.arange(4)
    rows = causal([(table, 0, 60)])
    whole = runtime.step(fed, rows, everything(rows))
    some = np.array([3, 17, 18, 40, 59])
    again = Rows(
        rows.positions[some], rows.slots[some], rows.visible[some], rows.sequence[some], rows.tables, rows.table_start
    )
    np.testing.assert_allclose(runtime.step(fed[some], again, everything(again)), whole[some], atol=1e-4)


def test_a_cache_comes_back_from_hidden_states(runtime: NativeRuntime) -> None:
    fed, rows = tokens_of(50), causal([(np.arange(4), 0, 50)])
    keep = np.empty((SMALL.layers, 50, SMALL.hidden), np.float32)
    logits = runtime.step(fed, rows, everything(rows), keep=keep)
    np.testing.assert_array_equal(keep[0], runtime.embed(fed))
    kv = runtime.kv.copy()
    runtime.kv[:] = 0
    for layer in range(SMALL.layers):
        runtime.project(layer, keep[layer], rows)
    np.testing.assert_array_equal(runtime.kv, kv)
    x = keep[1].copy()
    runtime.forward(x, rows, first=1)
    np.testing.assert_array_equal(runtime.logits(x), logits)


def test_a_copied_block_serves_another_sequence(runtime: NativeRuntime) -> None:
    fed = tokens_of(21)
    runtime.step(fed[:20], causal([([0, 1], 0, 20)]), np.zeros(0, np.int32))
    last = np.zeros(1, np.int32)
    wanted = runtime.step(fed[20:], causal([([0, 1], 20, 1)]), last)
    runtime.copy_blocks([(1, 7)])
    runtime.kv[1].view(np.uint8)[:] = 255  # as floats, NaN
    np.testing.assert_array_equal(runtime.step(fed[20:], causal([([0, 7], 20, 1)]), last), wanted)
    assert runtime.block_bytes == runtime.kv[0].nbytes


def test_nan_stays_in_its_own_sequence(runtime: NativeRuntime) -> None:
    rows, fed = causal([([0], 0, 9), ([1, 2], 0, 20), ([3], 0, 5)]), tokens_of(34)
    clean = runtime.step(fed, rows, everything(rows))
    x = runtime.embed(fed)
    x[12, 5] = np.nan  # in the second sequence
    runtime.forward(x, rows)
    logits = runtime.logits(x)
    hit = (rows.sequence == 1) & (rows.slots >= 3)
    assert np.isnan(logits[hit]).all()
    np.testing.assert_array_equal(logits[rows.sequence != 1], clean[rows.sequence != 1])
    reused = causal([([1, 2], 0, 17)])  # poisoned blocks given to somebody else
    assert np.isfinite(runtime.step(fed[:17], reused, everything(reused))).all()


def test_a_forked_child_computes_the_same(runtime: NativeRuntime) -> None:
    rows, fed = causal([(np.arange(3), 0, 40)]), tokens_of(40)
    wanted = runtime.step(fed, rows, everything(rows))
    child = os.fork()
    if child == 0:
        same = False
        try:
            same = all(np.array_equal(runtime.step(fed, rows, everything(rows)), wanted) for _ in range(3))
        finally:
            os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(runtime.step(fed, rows, everything(rows)), wanted)


@pytest.mark.parametrize("format", ["fp32", "int8", "int4"])
def test_threads_and_intrinsics_change_nothing(format: str) -> None:
    rows, fed = causal([([0, 1, 2], 0, 40), ([3], 0, 3), ([4], 0, 1)]), tokens_of(44)
    results = []
    for threads, plain in ((1, False), (2, False), (3, False), (2, True)):
        runtime = NativeRuntime(Random(SMALL), format, BLOCKS, threads=threads, plain=plain)
        results.append(runtime.step(fed, rows, everything(rows)))
        runtime.close()
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    # A rounding that tips over elsewhere may move a byte; fp32 differs only by the order of sums.
    assert distance(results[3], results[0]) < (1e-5 if format == "fp32" else 1e-2)


@pytest.mark.parametrize(
    ("format", "matrices", "embedding", "most"),
    [
        ("int8", "F32", "F32", 0.03),
        ("int8", "Q4_1", "Q8_0", 0.03),
        ("int4", "Q4_1", "Q8_0", 0.02),
        ("fp32", "Q4_1", "Q8_0", 1e-5),
    ],
)
def test_rounding_loses_little(format: str, matrices: str, embedding: str, most: float) -> None:
    """Weights that are blocks of the format already are taken as they are: then only inputs are rounded."""
    exact = Random(SMALL, 0.05, matrices, embedding)
    runtime, reference = NativeRuntime(exact, format, BLOCKS), NativeRuntime(_Floats(exact), "fp32", BLOCKS)
    rows, fed = causal([(np.arange(4), 0, 60)]), tokens_of(60)
    got, wanted = (one.step(fed, rows, everything(rows)) for one in (runtime, reference))
    assert distance(got, wanted) < most
    if embedding == "Q8_0":
        np.testing.assert_array_equal(runtime.embed(fed), exact.tensor("model.embed_tokens.weight")[fed])


def test_pytorch_in_bf16_is_near() -> None:
    pytest.importorskip("torch")
    from nubes.llm.runtime.torch import TorchRuntime

    rows, fed = causal([(np.arange(4), 0, 60)]), tokens_of(60)
    got, wanted = (
        TorchRuntime(Random(SMALL, 0.05), "bf16", BLOCKS).step(fed, rows, everything(rows)).numpy(),
        NativeRuntime(Random(SMALL, 0.05), "fp32", BLOCKS).step(fed, rows, everything(rows)),
    )
    assert distance(got, wanted) < 0.02


class _Floats(Random):
    """The same values, as float32."""

    def __init__(self, other: Random) -> None:
        super().__init__(other.shape, other.std, *other.kinds)

    def raw(self, name: str):  # type: ignore[no-untyped-def]
        from nubes.llm.checkpoint.blocks import Blocks

        return Blocks("F32", self.tensor(name))

    def tensor(self, name: str) -> np.ndarray:
        return Random(self.shape, self.std, *self.kinds).tensor(name)


def test_what_cannot_be_run_is_refused() -> None:
    for shape in (replace_shape(hidden=80), replace_shape(head_dim=40), replace_shape(ffn=100)):
        with pytest.raises(UsageError, match="PyTorch"):
            NativeRuntime(Random(shape), "fp32")
    with pytest.raises(UsageError, match="multiple of 16"):
        NativeRuntime(Random(SMALL), "fp32", block_size=8)
    runtime = NativeRuntime(Random(SMALL), "fp32", blocks=2)
    rows = causal([([0], 0, 3)])
    with pytest.raises(UsageError, match="vocabulary"):
        runtime.step(np.array([1, 2, SMALL.vocab], np.int32), rows, everything(rows))
    with pytest.raises(UsageError, match="not there"):
        runtime.step(tokens_of(3), rows, np.array([3], np.int32))
    with pytest.raises(UsageError, match="contiguous"):
        runtime.forward(np.zeros((3, SMALL.hidden)), rows)  # type: ignore[arg-type]
    runtime.close()
    with pytest.raises(UsageError, match="closed"):
        runtime.step(tokens_of(3), rows, everything(rows))


def replace_shape(**sizes: int) -> Shape:
    import msgspec

    return msgspec.structs.replace(SMALL, **sizes)


@pytest.mark.parametrize(
    "changes",
    [
        {"slots": [0, 16]},  # a block that the table does not have
        {"visible": [1, 17]},
        {"slots": [0, -1]},
        {"positions": [0, 256]},
        {"sequence": [0, 1]},
        {"tables": [4]},
        {"table_start": [0, 2]},
        {"extra": [0, 1 << 14]},  # sees slot 16
        {"slots": [0]},
    ],
)
def test_rows_that_reach_outside_are_refused(changes: dict[str, list[int]]) -> None:
    rows = causal([([0], 0, 2)])
    rows.check(256, 4, 16)
    arrays = {name: np.array(value, np.uint64 if name == "extra" else np.int32) for name, value in changes.items()}
    with pytest.raises(UsageError):
        replace(rows, **arrays).check(256, 4, 16)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=5))
def test_causal_rows_are_what_they_say(parts: list[tuple[int, int]]) -> None:
    tables = [list(range(10 * i, 10 * i + -(-(start + count) // 16))) for i, (start, count) in enumerate(parts)]
    rows = causal((table, start, count) for table, (start, count) in zip(tables, parts, strict=True))
    expected = [(i, slot) for i, (start, count) in enumerate(parts) for slot in range(start, start + count)]
    assert list(zip(rows.sequence.tolist(), rows.slots.tolist(), strict=True)) == expected
    assert (rows.visible == rows.slots + 1).all()
    assert (rows.positions == rows.slots).all()
    assert [rows.tables[a:b].tolist() for a, b in zip(rows.table_start, rows.table_start[1:], strict=False)] == tables
    rows.check(256, 60, 16)
