"""A model whose next token is a function of all tokens before it, read through the block table as attention would."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nubes.llm.engine.local import LocalEngine
from nubes.llm.runtime.rows import Rows
from nubes.llm.runtime.slots import Move
from nubes.llm.spec import Delta, Request, Sampling, Shape

VOCAB = 300
SHAPE = Shape(layers=1, hidden=32, heads=1, kv_heads=1, head_dim=32, ffn=32, vocab=VOCAB, context=512)


def following(tokens: Sequence[int]) -> int:
    """The likeliest token after `tokens`."""
    value = 7
    for token in tokens:
        value = (value * 31 + token + 1) % 1_000_003
    return 10 + value % 200


class ToyRuntime:
    """KV is the tokens themselves.

    `poison` makes a NaN wherever it is visible; `break_next` fails one step; steps wait while `running` is not set,
    but for the `ahead` next ones.
    """

    shape = SHAPE

    def __init__(self, blocks: int = 64, block_size: int = 16, poison: int = -1) -> None:
        self.blocks, self.block_size = blocks, block_size
        self.kv = np.full((blocks, block_size), -1, np.int64)
        self.block_bytes = self.kv[0].nbytes
        self.slots, self.pages, self.dtype = self, self.kv, np.float32
        self.poison = poison
        self.break_next = False
        self.running = threading.Event()
        self.running.set()
        self.ahead = 0
        self.steps = 0
        self.rows = 0
        self.copies = 0

    def step(self, tokens: Any, rows: Rows, outputs: Any, keep: Any = None) -> Any:
        if self.ahead == 0:
            assert self.running.wait(60), "nobody let the engine go on"
        self.ahead = max(0, self.ahead - 1)
        if self.break_next:
            self.break_next = False
            raise MemoryError("as if")
        self.steps += 1
        self.rows += len(tokens)
        size = self.block_size
        tables = [rows.tables[a:b] for a, b in zip(rows.table_start, rows.table_start[1:], strict=False)]
        for row, token in enumerate(tokens.tolist()):
            slot = int(rows.slots[row])
            self.kv[tables[rows.sequence[row]][slot // size], slot % size] = token
        logits = np.zeros((len(outputs), VOCAB), np.float32)
        for at, row in enumerate(outputs.tolist()):
            table = tables[rows.sequence[row]]
            past = int(rows.visible[row])
            mask = 0 if rows.extra is None else int(rows.extra[row])
            visible = [*range(past), *(past + bit for bit in range(64) if mask >> bit & 1)]
            seen = [int(self.kv[table[slot // size], slot % size]) for slot in visible]
            assert rows.positions[row] == len(seen) - 1, "a row stands in the wrong place"
            assert -1 not in seen, "a row looks at a slot that nobody wrote"
            logits[at, following(seen)] = 10.0
            if self.poison in seen:
                logits[at, 3] = np.nan
        return logits

    def move(self, moves: Sequence[Move]) -> None:
        if moves:
            blocks, offsets, to_blocks, to_offsets = np.array(moves).T
            self.kv[to_blocks, to_offsets] = self.kv[blocks, offsets]

    def copy_blocks(self, pairs: Iterable[tuple[int, int]]) -> None:
        for source, target in pairs:
            self.copies += 1
            self.kv[target] = self.kv[source]

    def close(self) -> None:
        pass


class ToyTokens:
    """Token t is the character with number t; 0 ends an answer."""

    eos = frozenset({0})
    vocab = VOCAB

    def encode(self, text: str, special: bool = True) -> list[int]:
        return [ord(letter) % VOCAB for letter in text]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))

    def piece(self, token: int) -> bytes:
        return chr(token).encode()

    def chat(self, messages: Sequence[Mapping[str, Any]], *args: Any, **extra: Any) -> str:
        return "".join(str(message["content"]) for message in messages)


def plain(prompt: Sequence[int], count: int) -> list[int]:
    """What a greedy answer has to be."""
    text = list(prompt)
    for _ in range(count):
        text.append(following(text))
    return text[len(prompt) :]


@contextlib.asynccontextmanager
async def engine(**options: Any) -> Any:
    runtime = ToyRuntime(options.pop("blocks", 64), options.pop("block_size", 16), options.pop("poison", -1))
    made = LocalEngine("toy", runtime, ToyTokens(), **options)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        await asyncio.to_thread(made.close)


async def ask(engine: LocalEngine, prompt: list[int], count: int, n: int = 1, **options: Any) -> list[list[int]]:
    """The tokens of each of `n` greedy answers of `count` tokens."""
    settings = {"max_tokens": count, "temperature": 0.0, "ignore_eos": True, **options.pop("sampling", {})}
    request = Request(id="r", prompt=prompt, sampling=Sampling(**settings), n=n, **options)
    answers: list[list[int]] = [[] for _ in range(n)]
    async for delta in engine.generate(request):
        assert isinstance(delta, Delta)
        assert not delta.error, delta.error
        answers[delta.index] += delta.tokens
    return answers
