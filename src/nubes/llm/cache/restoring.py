"""Stores a history's states as its plan says, and brings its KV back: loads and computation side by side."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nubes.llm.cache.chunks import ChunkStore
from nubes.llm.cache.restoration import Costs, Plan
from nubes.llm.runtime.rows import Runtime, causal
from nubes.llm.runtime.slots import like


class Restorer:
    """Histories of one runtime that may lose their KV. Made for one plan: what is stored is what it needs."""

    def __init__(self, runtime: Runtime, store: ChunkStore, plan: Plan) -> None:
        self.runtime = runtime
        self.store = store
        self.plan = plan
        self._loader = ThreadPoolExecutor(1, "nubes-llm-restore")

    def save(self, session: str, kept: NDArray[np.float32], table: Sequence[int], start: int) -> None:
        """Tokens from `start` on were computed: `kept` [layers, rows, hidden] are the layers' inputs for them."""
        plan, rows = self.plan, kept.shape[1]
        if plan.hidden:
            self.store.save(session, plan.tokens, kept[plan.tokens : plan.tokens + plan.hidden])
        if plan.kv:
            first = plan.tokens + plan.hidden
            layers = [self._kv(layer, table, start, start + rows) for layer in range(first, first + plan.kv)]
            self.store.save(session, first, np.stack(layers))

    def flush(self, session: str) -> None:
        self.store.flush(session)

    def restore(self, session: str, tokens: NDArray[np.int32], table: Sequence[int]) -> None:
        """The KV of all `tokens` into the blocks of `table`."""
        runtime, plan, store = self.runtime, self.plan, self.store
        rows = causal([(table, 0, len(tokens))])
        first, last = plan.tokens, plan.tokens + plan.hidden
        loads = {layer: self._loader.submit(store.read, session, layer) for layer in range(first, last)}
        # KV is put in its place by the thread that loads it: it waits for nothing.
        kvs: list[Future[None]] = [
            self._loader.submit(self._load_kv, session, layer, table) for layer in range(last, last + plan.kv)
        ]
        if plan.tokens:
            runtime.forward(runtime.embed(tokens), rows, 0, plan.tokens)
        for layer, load in loads.items():
            runtime.project(layer, self._stream(load.result()[: len(tokens)]), rows)
        for kv in kvs:
            kv.result()

    def close(self) -> None:
        self._loader.shutdown()

    def _kv(self, layer: int, table: Sequence[int], start: int, end: int) -> NDArray[np.float32]:
        """[tokens, 2 * kv_heads * head_dim] as they lie in the cache."""
        slots = np.arange(start, end)
        blocks, offsets = np.asarray(table)[slots // self.runtime.block_size], slots % self.runtime.block_size
        return np.stack(self.runtime.slots.read(layer, blocks, offsets), 1).reshape(len(slots), -1)

    def _load_kv(self, session: str, layer: int, table: Sequence[int]) -> None:
        runtime, s = self.runtime, self.runtime.shape
        rows = self.store.read(session, layer).reshape(-1, 2, s.kv_heads, s.head_dim)
        slots = np.arange(len(rows))
        blocks, offsets = np.asarray(table)[slots // runtime.block_size], slots % runtime.block_size
        runtime.slots.write(layer, blocks, offsets, rows[:, 0], rows[:, 1])

    def _stream(self, x: NDArray[np.float32]) -> Any:
        return x if isinstance(self.runtime.kv, np.ndarray) else like(x, self.runtime.embed(np.zeros(1, np.int32)))


def measured(
    runtime: Runtime, tokens: NDArray[np.int32], table: Sequence[int], bandwidth: float, tries: int = 3
) -> Costs:
    """A layer's costs on this machine for a history of `tokens`, the best of some tries. `table` is written to."""
    s, n = runtime.shape, len(tokens)
    rows = causal([(table, 0, n)])
    token_s = project_s = float("inf")
    for _ in range(tries):
        x = runtime.embed(tokens)
        begun = perf_counter()
        runtime.forward(x, rows)
        token_s = min(token_s, (perf_counter() - begun) / s.layers)
        begun = perf_counter()
        for layer in range(s.layers):
            runtime.project(layer, x, rows)
        project_s = min(project_s, (perf_counter() - begun) / s.layers)
    hidden, kv = 4.0 * n * s.hidden, 8.0 * n * s.kv_heads * s.head_dim
    return Costs(project_s, hidden / bandwidth, token_s, kv / bandwidth, hidden, kv)
