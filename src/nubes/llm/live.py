"""What an engine that runs looks like to those who serve it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec

from nubes.llm.spec import Delta, Request


class Stats(msgspec.Struct, kw_only=True):
    """An engine at a moment, and its counters since it started. Histograms are made by whoever sees the deltas."""

    running: int = 0
    waiting: int = 0
    blocks: int = 0  # of KV
    free_blocks: int = 0  # those whose content may be dropped included
    prefix_queries: int = 0  # prompt tokens looked up, and those that were found
    prefix_hits: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    steps: int = 0
    stalled_s: float = 0.0  # how long work has been there without a step that ended; 0 if there is none


class Tokens(Protocol):
    """Text to tokens and back, as the model wants them."""

    eos: frozenset[int]  # tokens that end an answer
    vocab: int

    def encode(self, text: str, special: bool = True) -> list[int]:
        """`special`: whether control tokens written in `text` count as such."""
        ...

    def decode(self, tokens: Sequence[int]) -> str: ...

    def piece(self, token: int) -> bytes:
        """The bytes one token stands for; b"" for a control token."""
        ...

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> str:
        """The model's chat template, filled in. Raises `UsageError` for messages that it refuses."""
        ...


class Deltas(Protocol):
    """What a request gets, as it comes. `aclose` at any time: whoever waits no longer holds nothing."""

    def __aiter__(self) -> AsyncIterator[Delta]: ...

    async def __anext__(self) -> Delta: ...

    async def aclose(self) -> None: ...


class Engine(Protocol):
    """A model that generates. `generate` may be left at any time: what the request held is free at once."""

    name: str
    context: int  # tokens a prompt and its answer may have together
    tokens: Tokens

    @property
    def adapters(self) -> Sequence[str]:
        """Names of the LoRA adapters that requests may ask for."""
        ...

    def generate(self, request: Request) -> Deltas:
        """Deltas of all `n` choices as they come. Raises `UsageError`, `ContextTooLong` or `Overloaded` at once."""
        ...

    def stats(self) -> Stats: ...


@runtime_checkable
class Adapting(Protocol):
    """An engine whose LoRA adapters come and go while it serves."""

    def load_adapter(self, name: str, path: str) -> None:
        """From a folder as PEFT saves it. Raises `UsageError`, `NotFound`, `BrokenModel`."""
        ...

    def unload_adapter(self, name: str) -> None:
        """Requests that have it go on. Raises `NotFound`."""
        ...


class Embedder(Protocol):
    """A model that turns texts into vectors."""

    name: str
    context: int
    dimensions: int

    async def embed(self, texts: Sequence[str | list[int]]) -> tuple[list[list[float]], int]:
        """A unit vector for each text or token list, and how many tokens they had together."""
        ...
