"""Which rows of a step are adapted by which adapter, and where in the pool that adapter lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nubes.kernel.errors import UsageError
from nubes.llm.lora.adapter import Adapter, per_block

Ints = NDArray[np.int32]

SEGMENT = np.dtype(
    [
        ("first", "i4"), ("rows", "i4"), ("rank", "i4"), ("per_block", "i4"), ("page", "i4"), ("scale", "f4"),
        ("a", "i4", 4), ("b", "i4", 4), ("blocks", "u8"),
    ],
    align=True,
)  # fmt: skip  # `segment` of lora.h


class Placed:
    """An adapter in blocks of a runtime's pool. They need not be neighbours."""

    def __init__(self, adapter: Adapter, blocks: Sequence[int], block_values: int) -> None:
        self.name, self.rank, self.scale, self.layout = adapter.name, adapter.rank, adapter.scale, adapter.layout
        self.blocks = np.array(blocks, np.int32)
        layout = adapter.layout
        per = per_block(layout.page, block_values)
        if len(blocks) != adapter.blocks(block_values):
            raise UsageError(
                f"Adapter {adapter.name!r} takes {adapter.blocks(block_values)} blocks, not {len(blocks)}."
            )
        self.record = np.zeros((), SEGMENT)
        self.record["rank"], self.record["per_block"], self.record["page"] = adapter.rank, per, layout.page
        self.record["scale"], self.record["a"], self.record["b"] = adapter.scale, layout.a, layout.b
        self.record["blocks"] = self.blocks.ctypes.data


@dataclass(frozen=True, eq=False)
class Segments:
    """Rows `first[i]` to `first[i] + rows[i]` are adapted by `placed[i]`; rows in no segment are the model's own."""

    first: Ints
    rows: Ints
    placed: tuple[Placed, ...]

    @cached_property
    def width(self) -> int:
        return 3 * max(placed.rank for placed in self.placed)

    @cached_property
    def records(self) -> NDArray[np.void]:
        """As `segment` of lora.h. Points into `placed`: lives no longer than that."""
        made = np.array([placed.record for placed in self.placed], SEGMENT)
        made["first"], made["rows"] = self.first, self.rows
        return made

    def check(self, rows: int, blocks: int) -> None:
        """Raise `UsageError` for segments outside of the rows or over one another, or blocks outside of the pool."""
        ends = self.first + self.rows
        if len(self.first) != len(self.placed) or (self.rows < 1).any() or (self.first[1:] < ends[:-1]).any():
            raise UsageError("Segments are stretches of rows, one after another.")
        if len(self.first) and (self.first[0] < 0 or ends[-1] > rows):
            raise UsageError("A segment is outside of the step's rows.")
        for placed in self.placed:
            if placed.blocks.min() < 0 or placed.blocks.max() >= blocks:
                raise UsageError(f"Adapter {placed.name!r} lies in a block outside of 0 ... {blocks - 1}.")


def segments(owners: Sequence[Placed | None], counts: Sequence[int]) -> Segments | None:
    """Neighbours with the same adapter in one segment. `owners[i]` adapts the next `counts[i]` rows."""
    first: list[int] = []
    rows: list[int] = []
    placed: list[Placed] = []
    at, last = 0, None
    for owner, count in zip(owners, counts, strict=True):
        if owner is not None:
            if owner is last:
                rows[-1] += count
            else:
                first.append(at)
                rows.append(count)
                placed.append(owner)
        last = owner
        at += count
    return Segments(np.array(first, np.int32), np.array(rows, np.int32), tuple(placed)) if placed else None
