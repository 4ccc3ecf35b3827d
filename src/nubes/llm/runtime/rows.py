"""What one step computes, as plain data, and what runs it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nubes.kernel.errors import UsageError
from nubes.llm.checkpoint.blocks import Blocks
from nubes.llm.lora.adapter import Adapter
from nubes.llm.lora.segments import Segments
from nubes.llm.runtime.slots import Slots
from nubes.llm.spec import Shape

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    """The rows (tokens) of a step: prefill chunks, decodes, trees to verify and parts to recompute, in any mixture.

    A sequence is a table of KV blocks; slot i of a sequence lies in its block i // block_size. Before any row attends,
    all rows' keys and values are written. Rows of a sequence that are side by side are computed together.
    """

    positions: Ints  # [rows] for the rotary embedding
    slots: Ints  # [rows] where the row's own key and value go
    visible: Ints  # [rows] the row attends to all slots below this: slot + 1 if plainly causal
    sequence: Ints  # [rows] which table it belongs to
    tables: Ints  # the block ids of all sequences, one after another
    table_start: Ints  # [sequences + 1] where each table starts in `tables`
    extra: NDArray[np.uint64] | None = None  # [rows] bit b: the row also attends to slot visible + b
    lora: Segments | None = None  # which rows an adapter changes

    def __len__(self) -> int:
        return len(self.positions)

    def check(self, positions: int, blocks: int, block_size: int) -> None:
        """Raise `UsageError` for anything that would read or write outside of a sequence's blocks."""
        count = len(self.positions)
        per_row = (
            (self.slots, self.visible, self.sequence)
            if self.extra is None
            else (
                self.slots,
                self.visible,
                self.sequence,
                self.extra,
            )
        )
        for array in (self.positions, self.tables, self.table_start, *per_row):
            if not array.flags.c_contiguous or array.dtype != (np.uint64 if array is self.extra else np.int32):
                raise UsageError("Rows are contiguous arrays of int32, and of uint64 for `extra`.")
        if self.lora is not None:
            self.lora.check(count, blocks)
        if any(array.shape != (count,) for array in per_row):
            raise UsageError("positions, slots, visible, sequence and extra need one entry for each row.")
        if not count:
            return
        sizes = np.diff(self.table_start)
        if self.table_start[0] != 0 or self.table_start[-1] > len(self.tables) or sizes.min(initial=0) < 0:
            raise UsageError("table_start must rise from 0 and stay within tables.")
        if len(self.tables) and (self.tables.min() < 0 or self.tables.max() >= blocks):
            raise UsageError(f"A block table names a block outside of 0 ... {blocks - 1}.")
        if self.sequence.min() < 0 or self.sequence.max() >= len(sizes):
            raise UsageError("sequence names a table that is not there.")
        if self.positions.min() < 0 or self.positions.max() >= positions:
            raise UsageError(f"A position is outside of the model's context, 0 ... {positions - 1}.")
        reach = np.maximum(self.slots + 1, self.visible if self.extra is None else self.visible + _bits(self.extra))
        if self.slots.min() < 0 or self.visible.min() < 0 or (reach > sizes[self.sequence] * block_size).any():
            raise UsageError("A row writes or sees slots that its sequence has no blocks for.")


def causal(parts: Iterable[tuple[Sequence[int], int, int]]) -> Rows:
    """Rows of sequences that are plainly causal: for each its block table, the first slot to compute, and how many."""
    parts = list(parts)
    first = np.array([start for _, start, _ in parts], np.int32)
    count = np.array([many for _, _, many in parts], np.int32)
    sequence = np.repeat(np.arange(len(parts), dtype=np.int32), count)
    slots = np.arange(len(sequence), dtype=np.int32) - np.repeat(
        np.cumsum(count, dtype=np.int32) - count - first, count
    )
    table_start = np.zeros(len(parts) + 1, np.int32)
    np.cumsum([len(table) for table, _, _ in parts], out=table_start[1:])
    tables = np.concatenate([np.asarray(table, np.int32) for table, _, _ in parts] or [np.zeros(0, np.int32)])
    return Rows(slots, slots, slots + np.int32(1), sequence, tables, table_start)


def _bits(masks: NDArray[np.uint64]) -> Ints:
    """How many bits each number has up to its highest one."""
    high, low = masks >> np.uint64(32), masks & np.uint64(0xFFFFFFFF)
    return np.where(high > 0, 32 + np.frexp(high.astype(np.float64))[1], np.frexp(low.astype(np.float64))[1]).astype(
        np.int32
    )


class Checkpoint(Protocol):
    """A model's weights, by their Hugging Face names."""

    @property
    def shape(self) -> Shape: ...

    def raw(self, name: str) -> Blocks:
        """As it is stored."""
        ...

    def tensor(self, name: str) -> Floats:
        """As float32, [outputs, inputs]."""
        ...


class Runtime(Protocol):
    """A model that computes. Not for several threads at once.

    `kv` is [blocks, ...]: a block is one contiguous piece, and may be copied, swapped out or sent elsewhere as it is.
    Single tokens of it are seen through `slots`.
    """

    shape: Shape
    blocks: int
    block_size: int
    block_bytes: int
    kv: Any
    slots: Slots

    def embed(self, tokens: Ints) -> Any:
        """The residual stream [rows, hidden] that these tokens start with."""
        ...

    def forward(self, x: Any, rows: Rows, first: int = 0, last: int | None = None, keep: Any = None) -> None:
        """Run layers first ... last - 1 on `x` in place. `keep` [layers, rows, hidden] receives each one's input."""
        ...

    def logits(self, x: Any, rows: Ints | None = None) -> Any:
        """[n, vocab] of these rows of x, or of all: the last norm and the head."""
        ...

    def step(self, tokens: Ints, rows: Rows, outputs: Ints, keep: Any = None) -> Any:
        """`embed`, `forward` and `logits` of the rows `outputs` in one."""
        ...

    def project(self, layer: int, x: Any, rows: Rows) -> None:
        """Write only the keys and values of one layer whose input is `x`."""
        ...

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, (from, to), one after another."""
        ...

    def place(self, adapter: Adapter, nth: int, block: int) -> None:
        """Copy the `nth` part of an adapter into a block."""
        ...

    def close(self) -> None: ...
