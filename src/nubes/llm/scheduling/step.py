"""One iteration of the engine, as plain data: which rows of which sequences, and what they weigh."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

import msgspec

from nubes.llm.scheduling.load import Load

if TYPE_CHECKING:
    from nubes.llm.lora.paging import Fill
    from nubes.llm.scheduling.sequence import Sequence


class Chunk(msgspec.Struct, eq=False):
    """Rows `start` to `end` of a sequence's tokens; `last` if the next token is known after it."""

    sequence: Sequence
    start: int
    end: int
    last: bool


class Guess(msgspec.Struct, eq=False):
    """So many rows of a decoding sequence, in the slots behind its last token's; `held`: blocks it had before."""

    sequence: Sequence
    rows: int
    held: int


class Restored(msgspec.Struct, eq=False):
    """Blocks of a sequence that return: those at the places `at` of its `table`, which holds `tokens` then.

    `adapter` are the blocks where its adapter lies. All of it as it was when this was decided.
    """

    sequence: Sequence
    table: list[int]
    at: list[int]
    tokens: int
    adapter: list[int]


class Step(msgspec.Struct, eq=False):
    """What the engine is to do next: `loads`, `saves`, `copies`, then the chunks and, if `decodes`, all decodes.

    `loads` are (host, device) blocks that return, with the sequences in `resumed` or because a prompt was found there:
    `restored` says what they are of. `saves` (device, host) blocks that leave, or are copied ahead of time; `copies`
    (from, to) blocks. The order matters: a step may write to what an earlier part of it has read.
    `guesses` are rows beside those of the decodes, of which some may hold.
    `fills` are parts of adapters, for later steps: they may be copied meanwhile.
    """

    load: Load
    chunks: list[Chunk] = []
    decodes: bool = False
    guesses: list[Guess] = []
    copies: list[tuple[int, int]] = []
    resumed: list[Sequence] = []
    saves: list[tuple[int, int]] = []
    loads: list[tuple[int, int]] = []
    restored: list[Restored] = []
    fills: list[Fill] = []

    def without(self, chunks: list[Chunk]) -> Step:
        """The same step, some of its chunks left out. It weighs what it did."""
        other = copy(self)
        other.chunks = [chunk for chunk in self.chunks if chunk not in chunks]
        return other
