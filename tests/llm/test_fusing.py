"""Texts put together: exact when all is computed, right masks and positions, and a store that forgets in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nubes.kernel.errors import UsageError
from nubes.llm.cache.fusing import Blender, turned
from nubes.llm.cache.texts import TextStore, key_of
from nubes.llm.policies.cacheblend import CacheBlend, cheapest
from nubes.llm.runtime.rotary import angles
from nubes.llm.runtime.rows import causal
from nubes.llm.spec import Shape
from tests.llm.runtime_models import Random

SHAPE = Shape(layers=5, hidden=64, heads=4, kv_heads=2, head_dim=32, ffn=96, vocab=101, context=512)
TABLE = [*range(1, 30, 2), *range(0, 30, 2)]
TEXTS = [[(7 * n + k * n * n) % 101 for n in range(size)] for k, size in enumerate((40, 71, 33))]
REST = [5, 6, 7, 8]


def runtime() -> object:
    pytest.importorskip("torch", reason="the runtime is PyTorch's")
    from nubes.llm.runtime.torch import TorchRuntime

    return TorchRuntime(Random(SHAPE, std=0.3), "fp32", 30, 16)


def exact(made: object) -> np.ndarray:
    tokens = np.array([token for text in (*TEXTS, REST) for token in text], np.int32)
    rows = causal([(TABLE, 0, len(tokens))])
    return np.asarray(made.step(tokens, rows, np.array([len(tokens) - 1], np.int32)))  # type: ignore[attr-defined]


def fused(made: object, fusion: object, store: TextStore | None = None, **more: float) -> tuple[np.ndarray, int]:
    blender = Blender(made, store or TextStore(None), fusion, **more)  # type: ignore[arg-type]
    logits = np.asarray(blender.fuse(TEXTS, REST, TABLE))
    blender.close()
    return logits, blender.computed


def test_all_computed_is_exact() -> None:
    made = runtime()
    want = exact(made)
    kv = made.kv.clone()  # type: ignore[attr-defined]
    for fusion in ("exact", CacheBlend(1 - 1e-9), CacheBlend(1.0)):
        made.kv[:] = 0  # type: ignore[attr-defined]
        got, computed = fused(made, fusion)
        assert np.abs(got - want).max() < 1e-3
        assert computed == 5 * 148
        table = np.array(TABLE[:9])
        assert float((made.kv[table] - kv[table]).abs().max()) < 1e-3  # type: ignore[attr-defined]


def test_less_is_computed_and_comes_close() -> None:
    made = runtime()
    want = exact(made)
    off = {}
    for share in (0.0, 0.2, 0.6):
        got, computed = fused(made, CacheBlend(share) if share else "reuse")
        off[share] = np.abs(got - want).max()
        known, first = 144, round(1.25 * share * 144)
        here = round(share * known)
        assert computed == ((148 + first + 4 + 3 * (here + 4)) if share else 5 * 4)
    assert 0 < off[0.6] < off[0.0]


def test_the_first_text_alone_needs_nothing() -> None:
    """One text at the beginning was computed just so: reuse is exact."""
    made = runtime()
    tokens = np.array([*TEXTS[0], *REST], np.int32)
    want = np.asarray(made.step(tokens, causal([(TABLE, 0, 44)]), np.array([43], np.int32)))  # type: ignore[attr-defined]
    blender = Blender(made, TextStore(None), "reuse")  # type: ignore[arg-type]
    assert np.abs(np.asarray(blender.fuse([TEXTS[0]], REST, TABLE)) - want).max() < 1e-3
    assert blender.computed == 5 * 4
    blender.close()


def test_turned_keys_are_those_of_a_later_position() -> None:
    table = angles(SHAPE)
    key = np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)
    at = turned(key, table[17])
    assert np.abs(turned(at, table[100]) - turned(key, table[117])).max() < 1e-4


def test_tokens_that_deviate_most_go_on() -> None:
    deviation = np.array([0.1, 5.0, 0.2, 3.0, 4.0], np.float32)
    assert CacheBlend().select(deviation, 3).tolist() == [1, 3, 4]
    picked = CacheBlend(pick="random", seed=1).select(deviation, 3)
    assert len(set(picked.tolist())) == 3
    with pytest.raises(UsageError):
        CacheBlend(pick="best")


def test_the_controller_uses_the_time_of_loading() -> None:
    policy = CacheBlend(0.15)
    assert policy.share(10.0, 1.0) == 0.15  # hidden behind the least
    assert policy.share(10.0, 4.0) == 0.4  # while that loads, more is computed
    assert policy.share(10.0, 40.0) == 1.0  # no use in loading
    assert cheapest([0.1, 1.0, 1.4, 20.0], 10.0, 0.15) == 2
    assert cheapest([5.0, 9.0], 10.0, 0.15) == 0


def test_a_slow_disk_makes_all_computed(tmp_path: Path) -> None:
    made = runtime()
    want = exact(made)
    store = TextStore(tmp_path, 1 << 30, 1 << 30, bandwidth=1e5)
    blender = Blender(made, store, "cacheblend", prefill_row_s=1e-6)  # type: ignore[arg-type]
    for text in TEXTS:
        store.demote(blender.learn(text, TABLE))
    assert np.abs(np.asarray(blender.fuse(TEXTS, REST, TABLE)) - want).max() < 1e-3
    assert blender.computed == 5 * 148
    blender.close()


def test_the_store_forgets_in_order(tmp_path: Path) -> None:
    kv = np.arange(2 * 2 * 4 * 2 * 8, dtype=np.float32).reshape(2, 2, 4, 2, 8)
    store = TextStore(tmp_path, 2 * kv.nbytes, 2 * kv.nbytes)
    for nth, name in enumerate("abc"):
        store.put(name, kv + nth)
    assert {name: store.entries[name].held is not None for name in "abc"} == {"a": False, "b": True, "c": True}
    assert (store.layer("a", 1) == kv[1]).all()  # from its file
    assert store.on_disk(["a", "b"]) == kv.nbytes
    store.touch("b")
    store.put("d", kv)
    assert store.entries["c"].held is None, "b was used after it"
    store.put("e", kv)
    assert "a" not in store
    assert store.held == {True: 2 * kv.nbytes, False: 2 * kv.nbytes}
    assert len(list(tmp_path.iterdir())) == 2
    assert key_of("m", [1, 2]) != key_of("m", [1, 3]) != key_of("n", [1, 3])


def test_requests_with_chunks_reach_it_through_the_engine() -> None:
    """With every token going on its answers are those of a plain prompt; nobody finds KV that was put together."""
    import asyncio

    from nubes.llm.engine.local import LocalEngine
    from nubes.llm.spec import Request, Sampling
    from tests.llm.toy import ToyTokens

    made = runtime()
    prompt = [token for text in (*TEXTS, REST) for token in text]

    async def answers() -> list[list[int]]:
        engine = LocalEngine("one", made, ToyTokens(), fusion=CacheBlend(1 - 1e-9))  # type: ignore[arg-type]
        got = []
        for name, chunks in (("plain", ()), ("chunks", (40, 71, 33)), ("again", (40, 71, 33)), ("two", (40,))):
            sampling = Sampling(max_tokens=6, temperature=0.0, ignore_eos=True)
            request = Request(id=name, prompt=prompt, sampling=sampling, chunks=chunks)
            answer: list[int] = []
            async for delta in engine.generate(request):
                assert not delta.error, delta.error
                assert not delta.cached
                answer += delta.tokens
            got.append(answer)
        with pytest.raises(UsageError, match="Chunks"):
            engine.generate(Request(id="bad", prompt=prompt, chunks=(148,)))
        assert engine.blender is not None
        assert len(engine.blender.store.entries) == 3
        await asyncio.to_thread(engine.close)
        return got

    got = asyncio.run(asyncio.wait_for(answers(), 60))
    assert got[0] == got[1] == got[2] == got[3]
