"""One iteration of the engine, as plain data: which rows of which sequences, and what they weigh."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nubes.llm.load import Load
from nubes.llm.lora.paging import Fill

if TYPE_CHECKING:
    from nubes.llm.sequence import Sequence


class Chunk:
    """Rows `start` to `end` of a sequence's tokens; `last` if the next token is known after it."""

    __slots__ = ("end", "last", "sequence", "start")

    def __init__(self, sequence: Sequence, start: int, end: int, last: bool) -> None:
        self.sequence = sequence
        self.start = start
        self.end = end
        self.last = last


class Guess:
    """So many rows of a decoding sequence, in the slots behind its last token's; `held`: blocks it had before."""

    __slots__ = ("held", "rows", "sequence")

    def __init__(self, sequence: Sequence, rows: int, held: int) -> None:
        self.sequence = sequence
        self.rows = rows
        self.held = held


class Step:
    """What the engine is to do next: `loads`, `saves`, `copies`, then the chunks and, if `decodes`, all decodes.

    `loads` are (host, device) blocks that return, with the sequences in `resumed` or because a prompt was found there;
    `saves` (device, host) blocks that leave, or are copied ahead of time; `copies` (from, to) blocks. The order
    matters: a step may write to what an earlier part of it has read.
    `guesses` are rows beside those of the decodes, of which some may hold.
    `fills` are parts of adapters, for later steps: they may be copied meanwhile.
    """

    __slots__ = ("chunks", "copies", "decodes", "fills", "guesses", "load", "loads", "resumed", "saves")

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.decodes = False
        self.guesses: list[Guess] = []
        self.copies: list[tuple[int, int]] = []
        self.resumed: list[Sequence] = []
        self.saves: list[tuple[int, int]] = []
        self.loads: list[tuple[int, int]] = []
        self.fills: list[Fill] = []
        self.load = Load()
