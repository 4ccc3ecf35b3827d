"""What the reproductions of LoRA systems share: many adapters, requests for them, and weights that are merged."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from nubes.llm.lora.adapter import TARGETS, Adapter, Layout, sizes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import DTypeLike, NDArray

    from nubes.llm.checkpoint import Checkpoint
    from nubes.llm.engine.local import LocalEngine
    from nubes.llm.lora.store import Store
    from nubes.llm.runtime.native import NativeRuntime
    from nubes.llm.runtime.rows import Rows
    from nubes.llm.spec import Shape


class Ask(NamedTuple):
    prompt: int  # tokens
    output: int
    adapter: str  # its name; "": the model's own


def many(shape: Shape, ranks: Sequence[int], seed: int, dtype: DTypeLike, name: str = "a") -> list[Adapter]:
    """An adapter of each rank, as random initialisation and a little training could leave it; made in no time."""
    import numpy as np

    layout, size = Layout.of(shape, TARGETS), sizes(shape)
    draw = np.random.default_rng(seed)
    scale = np.empty(layout.page, np.float32)
    for target, a, b in zip(TARGETS, layout.a, layout.b, strict=True):
        inputs, outputs = size[target]
        scale[a : a + inputs], scale[b : b + outputs] = inputs**-0.5, 0.01
    longest = shape.layers * max(ranks)
    noise = (draw.standard_normal((longest + 997, layout.page), np.float32) * scale).astype(dtype)
    made = []
    for n, rank in enumerate(ranks):
        start = int(draw.integers(0, len(noise) - shape.layers * rank + 1))
        pages = noise[start : start + shape.layers * rank].copy()
        made.append(Adapter(f"{name}{n}", rank, 2.0, TARGETS, layout, pages))
    return made


def throughput(engine: LocalEngine, asks: Sequence[Ask], seed: int) -> float:
    """Tokens generated a second when all requests are there at once. Greedy, and no answer ends early."""
    import numpy as np

    from nubes.llm.spec import Request, Sampling

    draw = np.random.default_rng(seed)
    prompts = [draw.integers(100, engine.tokens.vocab, ask.prompt).tolist() for ask in asks]  # shared by nobody

    async def one(ask: Ask, prompt: list[int]) -> None:
        sampling = Sampling(max_tokens=ask.output, temperature=0.0, ignore_eos=True)
        async for delta in engine.generate(Request(id="r", prompt=prompt, sampling=sampling, adapter=ask.adapter)):
            if delta.error:
                raise RuntimeError(delta.error)

    async def everything() -> None:
        await asyncio.gather(*(one(ask, prompt) for ask, prompt in zip(asks, prompts, strict=True)))

    begun = perf_counter()
    asyncio.run(everything())
    return sum(ask.output for ask in asks) / (perf_counter() - begun)


class Merging:
    """A runtime that makes an adapter's change to its own weights, and takes it back for the next one.

    For steps with one adapter at most, and all of their rows in it.
    """

    def __init__(self, runtime: NativeRuntime, checkpoint: Checkpoint, store: Store | None = None) -> None:
        self._runtime = runtime
        self.store = store
        self.merged = ""
        self.swaps = 0
        self._own = [
            {target: checkpoint.tensor(f"model.layers.{i}.self_attn.{target}.weight") for target in TARGETS}
            for i in range(runtime.shape.layers)
        ]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def merge(self, adapter: Adapter | None) -> None:
        """The weights become those of the model with this adapter, or its own."""
        import numpy as np

        runtime = self._runtime
        size, per_layer = sizes(runtime.shape), 4
        for i, own in enumerate(self._own):
            pairs = adapter.matrices(i) if adapter is not None else {}
            column = 0
            for target in TARGETS:
                weights: NDArray[Any] = own[target]
                if adapter is not None and target in pairs:
                    a, b = pairs[target]
                    weights = np.asarray(weights + (b * np.float32(adapter.scale)) @ a, np.float32)
                inputs, outputs = size[target]
                at = 0 if target == "o_proj" else column
                matrix = runtime._weights.matrices[i * per_layer + (target == "o_proj")]
                data = np.ascontiguousarray(weights, np.float32)
                runtime._library.nubes_pack(
                    matrix.kind, matrix.data, inputs, matrix.group, at, 16, 0, data.ctypes.data, outputs
                )
                column += outputs
        self.merged = adapter.name if adapter is not None else ""
        self.swaps += 1

    def step(self, tokens: Any, rows: Rows, outputs: Any, keep: Any = None) -> Any:
        from dataclasses import replace

        wanted = rows.lora.placed[0].name if rows.lora is not None else ""
        if wanted != self.merged:
            assert self.store is not None
            self.merge(self.store.names[wanted] if wanted else None)
        return self._runtime.step(tokens, replace(rows, lora=None), outputs, keep)


def zipf(draw: np.random.Generator, among: int, count: int, power: float) -> NDArray[np.int64]:
    """`count` draws of 0 ... among - 1, number n as often as (n + 1)^-power."""
    import numpy as np

    weights = np.arange(1, among + 1) ** -power
    return draw.choice(among, count, p=weights / weights.sum())
