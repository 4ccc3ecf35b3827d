"""A scheduler's step as the rows that a model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from nubes.llm.lora.segments import Placed, segments
from nubes.llm.runtime.rows import Rows
from nubes.llm.scheduling.sequence import Sequence
from nubes.llm.scheduling.state import State
from nubes.llm.scheduling.step import Step
from nubes.llm.speculative.tree import Tree

if TYPE_CHECKING:
    from numpy.typing import NDArray


def ragged(
    step: Step, state: State, text: Callable[[Sequence], list[int]], placed: Callable[[str], Placed] | None = None,
    trees: Mapping[int, Tree] = {},
) -> tuple[NDArray[np.int32], Rows, NDArray[np.int32], list[Sequence]]:  # fmt: skip
    """(tokens, rows, rows whose logits are wanted, the sequences these belong to). `text` gives a sequence's tokens.

    `placed` says where an adapter lies. Prompts go first, then decodes by adapter, so that each has few segments.
    `trees` are guesses by sequence id: rows behind that of the sequence's last token. Their logits come after all
    others, in the order of `trees`.
    """
    tokens: list[int] = []
    slots: list[int] = []
    owners: list[int] = []
    tables: list[list[int]] = []
    outputs: list[int] = []
    names: list[str] = []
    counts: list[int] = []
    heads: list[Sequence] = []
    guessed: dict[int, tuple[int, int]] = {}  # sequence -> its first guess's row, the slot of its last token
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
            count = 1
            if tree := trees.get(sequence.id):
                guessed[sequence.id] = len(tokens), context
                tokens += tree.tokens
                count += len(tree)
            slots += range(context, context + count)
            owners += [len(tables)] * count
            names.append(sequence.adapter)
            counts.append(count)
            tables.append(sequence.blocks)
    starts = np.zeros(len(tables) + 1, np.int32)
    np.cumsum([len(table) for table in tables], out=starts[1:])
    places = np.array(slots, np.int32)
    positions, visible, extra = places, places + np.int32(1), None
    if guessed:
        positions, extra = places.copy(), np.zeros(len(places), np.uint64)
        for id, tree in trees.items():
            first, context = guessed[id]
            rows_of = slice(first, first + len(tree))
            positions[rows_of] = np.array(tree.depths, np.int32) + context
            if not tree.chain:  # its nodes see the text, and of the tree their ancestors
                visible[rows_of] = context + 1
                extra[rows_of] = np.array(tree.masks, np.uint64)
            outputs += range(first, first + len(tree))
        if not extra.any():
            extra = None
    rows = Rows(
        positions=positions,
        slots=places,
        visible=visible,
        extra=extra,
        sequence=np.array(owners, np.int32),
        tables=np.fromiter(chain.from_iterable(tables), np.int32, int(starts[-1])),
        table_start=starts,
        lora=segments([placed(name) if name else None for name in names], counts) if placed and any(names) else None,
    )
    return np.array(tokens, np.int32), rows, np.array(outputs, np.int32), heads
