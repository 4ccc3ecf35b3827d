"""Prompts put together from texts whose KV is there, each computed alone.

From: CacheBlend: Fast Large Language Model Serving for RAG with Cached Knowledge Fusion (EuroSys 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from nubes.kernel.policy import make
from nubes.llm.cache.texts import TextStore, key_of
from nubes.llm.runtime.rotary import angles
from nubes.llm.runtime.rows import Rows, Runtime, causal
from nubes.llm.seams import Fusion

CHECK = 1  # the first layer whose values tell what the texts before would have changed


class Blender:
    """Fuses texts into the KV of one prompt, as its policy says. Not for several threads at once.

    The first layer is computed for all tokens, the check layers after it say which tokens go on. Rows see by their
    place in the prompt. `prefill_row_s` (seconds to compute a token of a prompt) lets the policy weigh loading by it.
    """

    def __init__(
        self, runtime: Runtime, store: TextStore, fusion: str | Fusion | None = "cacheblend", *, model: str = "",
        prefill_row_s: float = 0.0,
    ) -> None:  # fmt: skip
        self.runtime = runtime
        self.store = store
        self.fusion = cast(Fusion, make("fusion", fusion))
        self.model = model
        self.prefill_row_s = prefill_row_s
        self.computed = 0  # rows of layers that the last prompt took
        self.reused = 0  # tokens of its texts that were there before and did not go on
        self._angles = angles(runtime.shape)
        self._loader = ThreadPoolExecutor(1, "nubes-llm-texts")

    def close(self) -> None:
        self._loader.shutdown()

    def learn(self, text: Sequence[int], table: Sequence[int], salt: str = "") -> str:
        """Computes a text alone, unless that was done, and keeps its KV. The blocks of `table` are written to."""
        key = self._key(text, salt)
        if key in self.store:
            self.store.touch(key)
            return key
        runtime, count = self.runtime, len(text)
        rows = causal([(table, 0, count)])
        runtime.forward(runtime.embed(np.asarray(text, np.int32)), rows)
        blocks, offsets = self._places(table, np.arange(count))
        layers = [runtime.slots.read(layer, blocks, offsets) for layer in range(runtime.shape.layers)]
        self.store.put(key, np.array(layers, runtime.slots.dtype))
        return key

    def fuse(
        self, texts: Sequence[Sequence[int]], rest: Sequence[int], table: Sequence[int], salt: str = ""
    ) -> Any:  # fmt: skip
        """The logits after `texts` and `rest` [1, vocab]; the KV of all of it is in the blocks of `table` then.

        Texts that are not there are computed alone first. Those of different `salt` are kept apart.
        """
        runtime, layers = self.runtime, self.runtime.shape.layers
        counts = [len(text) for text in texts]
        there = np.repeat([self._key(text, salt) in self.store for text in texts], counts)
        keys = [self.learn(text, table, salt) for text in texts]
        self.reused = 0
        known = sum(counts)
        tokens = np.concatenate([np.asarray(text, np.int32) for text in (*texts, rest)])
        rows = causal([(table, 0, len(tokens))])
        share = 1.0 if any(key not in self.store for key in keys) else self._share(keys, known)
        if share >= 1.0:
            self.computed = layers * len(tokens)
            x = runtime.embed(tokens)
            runtime.forward(x, rows)
            return runtime.logits(x[-1:])
        starts = np.cumsum([0, *counts[:-1]])
        turns = [(key, int(start)) for key, start in zip(keys, starts, strict=True)]
        loads = [self._loader.submit(self._place, turns, layer, table) for layer in range(layers)]
        if share <= 0.0:
            self.computed, self.reused = 0, int(there.sum())
            return self._finish(runtime.embed(tokens[known:]), _some(rows, np.arange(known, len(tokens))), 0, loads)
        loads[0].result()  # what is stored of the first layer is overwritten, but not while it still comes
        x = runtime.embed(tokens)
        runtime.forward(x, rows, 0, CHECK)
        self.computed = len(tokens)
        chosen, layer = np.arange(known), CHECK  # the texts' tokens that go on
        for factor in self.fusion.filters:
            chosen, x, rows = self._check(
                layer, loads[layer], chosen, known, x, rows, round(factor * share * known), table
            )
            runtime.forward(x, rows, layer, layer + 1)
            self.computed += len(x)
            layer += 1
        self.reused = int(there.sum() - there[chosen].sum())
        return self._finish(x, rows, layer, loads)

    def _key(self, text: Sequence[int], salt: str) -> str:
        return key_of(f"{self.model}\0{salt}" if salt else self.model, text)

    def _share(self, keys: list[str], known: int) -> float:
        bandwidth = self.store.bandwidth
        load_s = self.store.on_disk(keys) / bandwidth if bandwidth else 0.0
        return self.fusion.share(known * self.prefill_row_s, load_s)

    def _check(
        self, layer: int, load: Future[None], chosen: NDArray[np.intp], known: int, x: Any, rows: Rows, count: int,
        table: Sequence[int],
    ) -> tuple[NDArray[np.intp], Any, Rows]:  # fmt: skip
        """Which tokens go on: those whose fresh values differ most from the stored ones."""
        load.result()
        blocks, offsets = self._places(table, chosen)
        _, stored = self.runtime.slots.read(layer, blocks, offsets)
        self.runtime.project(layer, x, rows)
        _, fresh = self.runtime.slots.read(layer, blocks, offsets)
        deviation = ((fresh - stored) ** 2).sum((1, 2))
        picked = self.fusion.select(deviation, min(count, len(chosen)))
        going = np.concatenate((picked, np.arange(len(chosen), len(x))))
        return chosen[picked], x[going], _some(rows, going)

    def _finish(self, x: Any, rows: Rows, first: int, loads: list[Future[None]]) -> Any:
        """The other layers, each when what is stored of it has come; those that are there at once go in one call."""
        layers = self.runtime.shape.layers
        while first < layers:
            loads[first].result()
            last = first + 1
            while last < layers and loads[last].done():
                loads[last].result()
                last += 1
            self.runtime.forward(x, rows, first, last)
            self.computed += len(x) * (last - first)
            first = last
        return self.runtime.logits(x[-1:])

    def _place(self, turns: list[tuple[str, int]], layer: int, table: Sequence[int]) -> None:
        """One layer's stored KV to where the texts stand in the prompt, keys turned by as much."""
        for key, start in turns:
            stored = self.store.layer(key, layer)
            blocks, offsets = self._places(table, np.arange(start, start + stored.shape[1]))
            keys, values = np.asarray(stored, np.float32)
            self.runtime.slots.write(
                layer, blocks, offsets, turned(keys, self._angles[start]) if start else keys, values
            )

    def _places(self, table: Sequence[int], slots: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        size = self.runtime.block_size
        return np.asarray(table)[slots // size], slots % size


def turned(keys: NDArray[np.float32], by: NDArray[np.float32]) -> NDArray[np.float32]:
    """Keys [..., head_dim] as they are some positions later; `by` are the cosines and sines of as many.

    Rotations add up, so nothing has to be known of where a key was.
    """
    cosine, sine = np.split(by, 2)
    a, b = np.split(keys, 2, -1)
    return np.concatenate((a * cosine - b * sine, b * cosine + a * sine), -1)


def _some(rows: Rows, chosen: NDArray[np.intp]) -> Rows:
    """These rows of one sequence."""
    return Rows(
        rows.positions[chosen], rows.slots[chosen], rows.visible[chosen], rows.sequence[chosen], rows.tables,
        rows.table_start,
    )  # fmt: skip
