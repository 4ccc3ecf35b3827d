"""What layers were given to compute KV from, in host memory: of all KV blocks that are there, and of some that left.

From: Fast State Restoration in LLM Serving with HCache (EuroSys 2025).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from time import perf_counter
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from nubes.kernel.policy import make
from nubes.llm.cache.restoration import Costs, Plan
from nubes.llm.cache.restoring import measured
from nubes.llm.engine.host import HostMemory
from nubes.llm.lora.segments import Placed, segments
from nubes.llm.runtime.rows import Rows, Runtime
from nubes.llm.runtime.slots import as_rows, like
from nubes.llm.scheduling.step import Restored
from nubes.llm.seams import Restoration

FLOAT = 4  # bytes
TOKENS = 128  # of the history whose restoration is timed


class Inputs:
    """Room for the states of `blocks` KV blocks as a plan has them: KV of some layers, the inputs of others.

    An input is known only while it is computed, so it is kept from then on, for as long as its KV block holds what was
    made of it. It is kept as it was, in fp32: so what comes back is what was there.
    """

    def __init__(self, runtime: Runtime, plan: Plan, blocks: int) -> None:
        s = runtime.shape
        self.runtime = runtime
        self.plan = plan
        self.layers = slice(plan.tokens, plan.tokens + plan.hidden)
        self._host = HostMemory(runtime, blocks, self.layers.stop)
        shape = (plan.hidden, runtime.block_size, s.hidden)
        self._here = np.empty((runtime.blocks, *shape), np.float32)  # beside the KV
        self._there = np.empty((blocks, *shape), np.float32)

    def room(self, rows: int) -> Any:
        """[layers, rows, hidden] for a step's `keep`; None if nothing is to be kept."""
        if not (rows and self.plan.hidden):
            return None
        s = self.runtime.shape
        if isinstance(self.runtime.kv, np.ndarray):
            return np.empty((s.layers, rows, s.hidden), np.float32)
        return self.runtime.embed(np.zeros(1, np.int32)).new_empty((s.layers, rows, s.hidden))

    def put(self, kept: Any, rows: Rows) -> None:
        """The inputs of rows that were computed."""
        size = self.runtime.block_size
        blocks = rows.tables[rows.table_start[rows.sequence] + rows.slots // size]
        self._here[blocks, :, rows.slots % size] = np.moveaxis(as_rows(kept[self.layers]), 0, 1)

    def move(self, loads: Iterable[tuple[int, int]], saves: Iterable[tuple[int, int]]) -> None:
        """First the (host, device) blocks that return, then the (device, host) blocks that leave."""
        loads, saves = list(loads), list(saves)
        self._host.move(loads, saves)
        for host, device in loads:
            self._here[device] = self._there[host]
        for device, host in saves:
            self._there[host] = self._here[device]

    def copy(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Blocks were copied, (from, to)."""
        for source, target in pairs:
            self._here[target] = self._here[source]

    def shift(self, moves: Sequence[tuple[int, int, int, int]]) -> None:
        """Tokens went from a block and offset to another, all at once."""
        if moves:
            blocks, offsets, to_blocks, to_offsets = np.array(moves, np.int64).T
            self._here[to_blocks, :, to_offsets] = self._here[blocks, :, offsets]

    def restore(self, what: Restored, text: Sequence[int], placed: Placed | None) -> None:
        """The KV of blocks that were loaded: of the first layers computed again, of the others from their inputs."""
        runtime, size, plan = self.runtime, self.runtime.block_size, self.plan
        slots = np.concatenate(
            [np.arange(at * size, min(what.tokens, (at + 1) * size), dtype=np.int32) for at in what.at]
        )
        if not len(slots) or not (plan.tokens or plan.hidden):
            return
        table = np.array(what.table, np.int32)
        only, start = np.zeros(len(slots), np.int32), np.array([0, len(table)], np.int32)
        rows = Rows(
            slots, slots, slots + np.int32(1), only, table, start,
            lora=segments([placed], [len(slots)]) if placed else None,
        )  # fmt: skip
        if plan.tokens:
            runtime.forward(runtime.embed(np.asarray(text, np.int32)[slots]), rows, 0, plan.tokens)
        blocks, offsets = table[slots // size], slots % size
        for nth in range(plan.hidden):
            runtime.project(plan.tokens + nth, self._stream(self._here[blocks, nth, offsets]), rows)

    def _stream(self, x: NDArray[np.float32]) -> Any:
        x = np.ascontiguousarray(x)
        return x if isinstance(self.runtime.kv, np.ndarray) else like(x, self.runtime.embed(np.zeros(1, np.int32)))


def planned(runtime: Runtime, restoration: str | Restoration | None) -> Plan | None:
    """What leaves a runtime's KV memory, and how it comes back; None if nothing is kept of it."""
    if restoration is None:
        return None
    plan = cast(Restoration, make("restoration", restoration)).plan(runtime.shape.layers, costs(runtime))
    return plan if plan.hidden or plan.kv else None


def host_blocks(runtime: Runtime, plan: Plan) -> int:
    """How many blocks that left find room in as much memory as KV takes, beside the inputs of those that are there."""
    s = runtime.shape
    inputs = FLOAT * plan.hidden * runtime.block_size * s.hidden
    one = inputs + plan.kv * runtime.block_bytes // s.layers
    return max(0, runtime.blocks * (runtime.block_bytes - inputs) // one)


def costs(runtime: Runtime) -> Costs:
    """Of a layer on this machine, measured; KV memory is written to. The link is a copy from the host's memory."""
    s, size = runtime.shape, runtime.block_size
    count = max(1, min(TOKENS, s.context, runtime.blocks * size))
    table = range(-(-count // size))
    host = HostMemory(runtime, len(table))
    pairs = [(block, block) for block in table]
    host.move((), pairs)
    begun = perf_counter()
    host.move(pairs, ())
    speed = len(pairs) * runtime.block_bytes / (perf_counter() - begun)
    found = measured(runtime, np.zeros(count, np.int32), table, speed)
    hidden = FLOAT * count * s.hidden
    kv = count * runtime.block_bytes / (size * s.layers)
    return Costs(found.project_s, hidden / speed, found.token_s, kv / speed, hidden, kv)
