"""The engine with adapters: answers as if merged, in any company; adapters that come and go; PEFT's folders."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nubes.kernel.errors import NotFound, UsageError
from nubes.llm.engine.local import LocalEngine
from nubes.llm.errors import BrokenModel, ContextTooLong
from nubes.llm.lora.adapter import Adapter, random_adapter
from nubes.llm.lora.peft import load_adapter
from nubes.llm.spec import Request, Sampling
from tests.llm.lora_models import SHAPE, Model, model, saved
from tests.llm.test_lora import native


class Tokens:
    eos = frozenset({0})
    vocab = SHAPE.vocab

    def encode(self, text: str, special: bool = True) -> list[int]:
        return [ord(letter) % SHAPE.vocab for letter in text]

    def decode(self, tokens: Any) -> str:
        return "".join(chr(64 + token) for token in tokens)

    def piece(self, token: int) -> bytes:
        return chr(64 + token).encode()

    def chat(self, *args: Any, **extra: Any) -> str:
        return ""


def opened(checkpoint: Model, blocks: int = 60, **options: Any) -> LocalEngine:
    from nubes.llm.runtime.native import NativeRuntime

    native(checkpoint).close()  # skips without a compiler
    return LocalEngine("m", NativeRuntime(checkpoint, "fp32", blocks, 16), Tokens(), **options)  # type: ignore[arg-type]


async def answer(engine: LocalEngine, prompt: list[int], count: int, adapter: str = "") -> list[int]:
    settings = Sampling(max_tokens=count, temperature=0.0, ignore_eos=True)
    tokens: list[int] = []
    async for delta in engine.generate(Request(id="r", prompt=prompt, sampling=settings, adapter=adapter)):
        assert not delta.error, delta.error
        tokens += delta.tokens
    return tokens


def adapters(count: int) -> list[Adapter]:
    return [random_adapter(f"a{n}", SHAPE, [4, 8, 16, 24][n % 4], n, strength=1.0) for n in range(count)]


@pytest.mark.parametrize("batching", ["sarathi", "vllm", "s-lora", "s-lora(distinct=2)", "one-adapter"])
def test_answers_are_as_if_merged_whatever_else_runs(batching: str) -> None:
    """With less memory than all adapters take, so that they come, go and share blocks with KV."""
    base, made = model(5), adapters(9)
    draw = random.Random(3)
    wanted = [
        (
            [draw.randrange(SHAPE.vocab) for _ in range(draw.randint(1, 40))],
            draw.randint(1, 30),
            draw.choice([*made, None]),
        )
        for _ in range(30)
    ]

    async def all_of() -> list[list[int]]:
        engine = opened(base, batching=batching)
        for adapter in made:
            engine.store.add(adapter)
        try:
            jobs = [answer(engine, prompt, count, adapter.name if adapter else "") for prompt, count, adapter in wanted]
            got = await asyncio.wait_for(asyncio.gather(*jobs), 60)
            assert not engine.scheduler.state.adapters.held
            assert engine.scheduler.state.pool.used == 0
            return list(got)
        finally:
            engine.close()

    got = asyncio.run(all_of())
    for adapter in [*made, None]:
        mine = [n for n, (_, _, of) in enumerate(wanted) if of is adapter]
        engine = opened(base.merged(adapter) if adapter else base)

        async def alone(engine: LocalEngine, mine: list[int]) -> list[list[int]]:
            return [await answer(engine, *wanted[n][:2]) for n in mine]

        for n, want in zip(mine, asyncio.run(alone(engine, mine)), strict=True):
            assert got[n] == want, f"{adapter and adapter.name}"
        engine.close()


def test_a_name_that_is_loaded_anew_is_another_adapter() -> None:
    """KV and weights of the old one are never used for the new one, though the prompt is the same."""

    async def run() -> None:
        engine = opened(model(5))
        prompt = list(range(1, 40))
        try:
            plain = await answer(engine, prompt, 12)
            engine.store.add(random_adapter("a", SHAPE, 8, 1, strength=2.0))
            assert engine.adapters == ["a"]
            first = await answer(engine, prompt, 12, "a")
            with pytest.raises(UsageError):
                engine.store.add(random_adapter("a", SHAPE, 8, 2, strength=2.0))
            engine.unload_adapter("a")
            with pytest.raises(NotFound):
                await answer(engine, prompt, 12, "a")
            with pytest.raises(NotFound):
                engine.unload_adapter("a")
            engine.store.add(random_adapter("a", SHAPE, 8, 2, strength=2.0))
            second = await answer(engine, prompt, 12, "a")
            assert plain == await answer(engine, prompt, 12)
            assert len({tuple(plain), tuple(first), tuple(second)}) == 3
            again = opened(model(5))
            again.store.add(random_adapter("a", SHAPE, 8, 2, strength=2.0))
            assert second == await answer(again, prompt, 12, "a")
            again.close()
        finally:
            engine.close()

    asyncio.run(run())


def test_a_request_goes_on_with_an_adapter_that_is_unloaded_meanwhile() -> None:
    async def run() -> None:
        engine = opened(model(5))
        engine.store.add(random_adapter("a", SHAPE, 8, 1, strength=2.0))
        want = await answer(engine, [1, 2, 3], 60, "a")
        job = asyncio.ensure_future(answer(engine, [1, 2, 3], 60, "a"))
        await asyncio.sleep(0.001)
        engine.unload_adapter("a")
        assert await job == want
        await asyncio.sleep(0.05)
        engine.close()

    asyncio.run(run())


def test_an_adapter_larger_than_the_memory_is_refused() -> None:
    async def run() -> None:
        engine = opened(model(5), blocks=4)
        engine.store.add(random_adapter("a", SHAPE, 64, 1))
        with pytest.raises(ContextTooLong):
            await answer(engine, [1, 2, 3], 5, "a")
        assert len(await answer(engine, [1, 2, 3], 5)) == 5
        engine.close()

    asyncio.run(run())


# -- PEFT's folders -----------------------------------------------------------------------------------------------------


def test_a_folder_of_peft(tmp_path: Path) -> None:
    adapter = random_adapter("a", SHAPE, 8, 1, targets=("q_proj", "v_proj"))
    loaded = load_adapter("b", saved(tmp_path / "one", adapter), SHAPE, np.float32)
    assert (loaded.name, loaded.rank, loaded.scale, loaded.targets) == ("b", 8, 2.0, ("q_proj", "v_proj"))
    assert (loaded.pages == adapter.pages).all()
    stable = load_adapter("c", saved(tmp_path / "two", adapter, use_rslora=True), SHAPE)
    assert stable.scale == pytest.approx(16 / 8**0.5)


@pytest.mark.parametrize(
    "config", [{"use_dora": True}, {"bias": "all"}, {"rank_pattern": {"q_proj": 4}}, {"peft_type": "IA3"}]
)
def test_kinds_that_are_not_served_are_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = saved(tmp_path / "one", random_adapter("a", SHAPE, 8, 1), **config)
    with pytest.raises(UsageError, match="plain LoRA"):
        load_adapter("a", folder, SHAPE)


def test_what_is_damaged_or_of_another_model_is_refused(tmp_path: Path) -> None:
    adapter = random_adapter("a", SHAPE, 8, 1)
    with pytest.raises(NotFound):
        load_adapter("a", tmp_path / "nothing", SHAPE)
    folder = saved(tmp_path / "rank", adapter, r=16)
    with pytest.raises(BrokenModel, match="lacks"):
        load_adapter("a", folder, SHAPE)
    folder = saved(tmp_path / "cut", adapter)
    data = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(data[:-7])
    with pytest.raises(BrokenModel, match="damaged"):
        load_adapter("a", folder, SHAPE)
    other = SHAPE.__class__(layers=2, hidden=128, heads=4, kv_heads=1, head_dim=32, ffn=64, vocab=64, context=256)
    with pytest.raises(UsageError, match="another model"):
        load_adapter("a", saved(tmp_path / "other", adapter), other)
