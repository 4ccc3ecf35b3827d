"""One iteration of the engine, as plain data: which rows of which sequences, and what they weigh."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nubes.llm.sequence import Sequence


class Load:
    """What a step-time model needs to know of a step. A row is one token that goes through the model.

    `prefill_rows`, `prefill_squares`: sums over the chunks of their rows, and of rows^2. `prefill_context`,
    `prefill_pairs`: sums of the KV tokens that were there before each, and of rows times those. `decode_context`: KV
    tokens that the decodes read, their own included. `moved`: KV blocks copied to or from host memory.
    """

    __slots__ = (
        "decode_context", "decodes", "moved",
        "prefill_context", "prefill_pairs", "prefill_rows", "prefill_squares", "prefills",
    )  # fmt: skip

    def __init__(
        self,
        prefills: int = 0,
        prefill_rows: int = 0,
        prefill_squares: int = 0,
        prefill_pairs: int = 0,
        decodes: int = 0,
        decode_context: int = 0,
        moved: int = 0,
        prefill_context: int = 0,
    ) -> None:
        self.prefills = prefills
        self.prefill_rows = prefill_rows
        self.prefill_squares = prefill_squares
        self.prefill_pairs = prefill_pairs
        self.decodes = decodes
        self.decode_context = decode_context
        self.moved = moved
        self.prefill_context = prefill_context

    @property
    def rows(self) -> int:
        return self.prefill_rows + self.decodes


class Chunk:
    """Rows `start` to `end` of a sequence's tokens; `last` if the next token is known after it."""

    __slots__ = ("end", "last", "sequence", "start")

    def __init__(self, sequence: Sequence, start: int, end: int, last: bool) -> None:
        self.sequence = sequence
        self.start = start
        self.end = end
        self.last = last


class Step:
    """What the engine is to do next, in this order: moves, copies, then the chunks and, if `decodes`, all decodes.

    `copies` are (from, to) blocks; `saves` are (device, host) blocks that leave, `loads` (host, device) those that
    return with the sequences in `resumed`.
    """

    __slots__ = ("chunks", "copies", "decodes", "load", "loads", "resumed", "saves")

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.decodes = False
        self.copies: list[tuple[int, int]] = []
        self.resumed: list[Sequence] = []
        self.saves: list[tuple[int, int]] = []
        self.loads: list[tuple[int, int]] = []
        self.load = Load()
