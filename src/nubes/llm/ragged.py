"""A scheduler's step as the rows that a model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from nubes.llm.lora.segments import Placed, segments
from nubes.llm.runtime.rows import Rows
from nubes.llm.sequence import Sequence
from nubes.llm.state import State
from nubes.llm.step import Step

if TYPE_CHECKING:
    from numpy.typing import NDArray


def ragged(
    step: Step, state: State, text: Callable[[Sequence], list[int]], placed: Callable[[str], Placed] | None = None
) -> tuple[NDArray[np.int32], Rows, NDArray[np.int32], list[Sequence]]:
    """(tokens, rows, rows whose logits are wanted, the sequences these belong to). `text` gives a sequence's tokens.

    `placed` says where an adapter lies. Prompts go first, then decodes by adapter, so that each has few segments.
    """
    tokens: list[int] = []
    slots: list[int] = []
    owners: list[int] = []
    tables: list[list[int]] = []
    outputs: list[int] = []
    names: list[str] = []
    counts: list[int] = []
    heads: list[Sequence] = []
    for chunk in step.chunks:
        sequence = chunk.sequence
        tokens += text(sequence)[chunk.start : chunk.end]
        slots += range(chunk.start, chunk.end)
        owners += [len(tables)] * (chunk.end - chunk.start)
        names.append(sequence.adapter)
        counts.append(chunk.end - chunk.start)
        tables.append(sequence.blocks)
        if chunk.last:
            outputs.append(len(tokens) - 1)
            heads.append(sequence)
    if step.decodes:
        decoding: Iterable[Sequence] = state.decoding.values()
        if state.adapters.held:
            decoding = sorted(decoding, key=lambda s: s.adapter)
        for sequence in decoding:
            context = sequence.context
            outputs.append(len(tokens))
            heads.append(sequence)
            tokens.append(text(sequence)[context])
            slots.append(context)
            owners.append(len(tables))
            names.append(sequence.adapter)
            counts.append(1)
            tables.append(sequence.blocks)
    starts = np.zeros(len(tables) + 1, np.int32)
    np.cumsum([len(table) for table in tables], out=starts[1:])
    places = np.array(slots, np.int32)
    rows = Rows(
        positions=places,
        slots=places,
        visible=places + np.int32(1),
        sequence=np.array(owners, np.int32),
        tables=np.fromiter(chain.from_iterable(tables), np.int32, int(starts[-1])),
        table_start=starts,
        lora=segments([placed(name) if name else None for name in names], counts) if placed and any(names) else None,
    )
    return np.array(tokens, np.int32), rows, np.array(outputs, np.int32), heads
