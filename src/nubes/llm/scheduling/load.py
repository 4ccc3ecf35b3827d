"""What a step weighs, summed up, and what says how long it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec


class Load(msgspec.Struct, gc=False):
    """The work of one engine step, summed up: a step model's answer costs the same for any batch.

    A prefill is a chunk of a prompt; its context is the KV that its sequence had before this step.
    """

    prefills: int = 0  # chunks
    prefill_rows: int = 0  # sum of chunk
    prefill_squares: int = 0  # sum of chunk^2
    prefill_pairs: int = 0  # sum of chunk * context
    prefill_context: int = 0  # sum of context
    decodes: int = 0
    decode_context: int = 0  # sum of the KV tokens that decodes read, their own included
    adapter_rows: int = 0  # sum over all rows of the blocks of their adapters
    adapter_blocks: int = 0  # of the different adapters
    filled: int = 0  # blocks of adapters copied from host memory while the step runs
    moved: int = 0  # KV blocks copied to or from host memory; no model knows of it: the link's speed tells
    guesses: int = 0  # of the decodes, rows of guessed tokens: each a decode that reads what it sees

    @property
    def rows(self) -> int:
        """Tokens that go through the matrices."""
        return self.prefill_rows + self.decodes

    @classmethod
    def of(cls, chunks: Sequence[tuple[int, int]] = (), contexts: Sequence[int] = ()) -> Load:
        """From (chunk, context) of each prefill, and from what each decode reads."""
        return cls(
            prefills=len(chunks),
            prefill_rows=sum(chunk for chunk, _ in chunks),
            prefill_squares=sum(chunk * chunk for chunk, _ in chunks),
            prefill_pairs=sum(chunk * context for chunk, context in chunks),
            prefill_context=sum(context for _, context in chunks),
            decodes=len(contexts),
            decode_context=sum(contexts),
        )


class StepModel(Protocol):
    """How long an engine's steps take, and what its device holds."""

    @property
    def name(self) -> str: ...

    @property
    def kv_tokens(self) -> int:
        """Tokens of KV that fit beside the weights."""
        ...

    @property
    def kv_bytes(self) -> int:
        """Of one token, over all layers and devices."""
        ...

    @property
    def weight_bytes(self) -> int: ...

    @property
    def gpu(self) -> str:
        """The kind of device, or "cpu"."""
        ...

    @property
    def devices(self) -> int: ...

    @property
    def stages(self) -> int:
        """Pipeline stages: a step passes through all, and as many steps may be under way."""
        ...

    def seconds(self, load: Load) -> float:
        """The time of one step in one stage."""
        ...

    def describe(self) -> str:
        """A sentence: where the figures come from, and what is assumed."""
        ...
