"""What the live reproductions of LLM systems share: a real model, text for it, and requests made by the clock."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from statistics import mean
from time import monotonic
from typing import TYPE_CHECKING, Any

from nubes.kernel.errors import NubesError

if TYPE_CHECKING:
    from nubes.llm.checkpoint import Checkpoint
    from nubes.llm.engine.local import LocalEngine
    from nubes.llm.runtime.rows import Runtime

MODEL = "smollm2-135m"


def missing() -> str:
    """Why the model cannot be tried here, at the speed of the compiled runtime; "" if it can."""
    from nubes.llm.checkpoint import find
    from nubes.llm.runtime.build import library

    try:
        find(MODEL)
        library()
    except NubesError as error:
        return str(error)
    return ""


def opened(format: str, slots: int, block_size: int = 16) -> tuple[Checkpoint, Runtime]:
    """The model with room for `slots` tokens of KV; `format` is that of its weights."""
    from nubes.llm.checkpoint import load
    from nubes.llm.engine.opening import BLOCK, open_runtime
    from nubes.llm.runtime.slots import block_bytes

    checkpoint = load(MODEL)
    kv_bytes = slots // BLOCK * block_bytes(checkpoint.shape, BLOCK, 4 if format == "fp32" else 1)
    return checkpoint, open_runtime(checkpoint, format, "cpu", None, kv_bytes, block_size)


@contextlib.contextmanager
def engine(checkpoint: Checkpoint, runtime: Runtime, **policies: Any) -> Iterator[LocalEngine]:
    """An engine over an opened model, under the named policies. Nothing is shared between requests unless asked for."""
    from nubes.llm.engine.local import LocalEngine

    policies.setdefault("retention", "none")
    made = LocalEngine(checkpoint.name, runtime, checkpoint.tokens, max_waiting=100_000, **policies)
    try:
        yield made
    finally:
        made.close()


def text(checkpoint: Checkpoint) -> list[int]:
    """Tokens of English prose: Python's own documentation."""
    from pydoc_data.topics import topics

    return checkpoint.tokens.encode(" ".join("\n".join(topics[name] for name in sorted(topics)[:40]).split()))


def prompts(text: Sequence[int], lengths: Sequence[int], seed: int) -> list[list[int]]:
    """Pieces of `text` of those lengths, drawn from all over it."""
    from nubes.kernel.rng import rng

    draw = rng(seed, "prompts")
    starts = [draw.randrange(len(text) - length) for length in lengths]
    return [list(text[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


@dataclass(slots=True)
class Answer:
    """What came of a request, and when: `told_s` has the time of each of its tokens."""

    sent_s: float = inf
    told_s: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    @property
    def normalised_s(self) -> float:
        """Latency for each of its tokens."""
        return (self.told_s[-1] - self.sent_s) / len(self.told_s) if self.told_s else inf

    @property
    def gaps_s(self) -> list[float]:
        return [b - a for a, b in pairwise(self.told_s)]


async def ask(engine: LocalEngine, prompt: list[int], output: int, answer: Answer | None = None) -> Answer:
    """A greedy answer of exactly `output` tokens, written to `answer` as it comes."""
    from nubes.llm.spec import Request, Sampling

    answer = Answer() if answer is None else answer
    sampling = Sampling(max_tokens=output, temperature=0.0, ignore_eos=True)
    answer.sent_s = monotonic()
    async for delta in engine.generate(Request(id="", prompt=prompt, sampling=sampling)):
        if delta.error:
            raise RuntimeError(delta.error)
        answer.tokens += delta.tokens
        answer.told_s += [monotonic()] * len(delta.tokens)
    return answer


async def by_the_clock(engine: LocalEngine, requests: Sequence[tuple[float, list[int], int]]) -> list[Answer]:
    """Sends each (seconds from now, prompt, output tokens) at its time, whatever becomes of the others."""
    begun = monotonic()

    async def one(at_s: float, prompt: list[int], output: int) -> Answer:
        await asyncio.sleep(max(0.0, begun + at_s - monotonic()))
        return await ask(engine, prompt, output)

    return list(await asyncio.gather(*(one(*request) for request in requests)))


@dataclass(frozen=True, slots=True)
class Saturated:
    """What an engine did while requests waited."""

    running: float  # sequences, on average
    rate: float  # tokens generated a second


async def saturated(
    engine: LocalEngine, requests: Sequence[tuple[float, list[int], int]], every_s: float = 0.02
) -> Saturated:
    """Serves requests `by_the_clock`, looking at the engine all the time. Some have to wait for others."""
    seen: list[tuple[float, int, int]] = []
    task = asyncio.ensure_future(by_the_clock(engine, requests))
    while not task.done():
        await asyncio.sleep(every_s)
        stats = engine.stats()
        if stats.waiting and stats.running:
            seen.append((monotonic(), stats.running, stats.generation_tokens))
    await task
    (first_s, _, before), (last_s, _, after) = seen[0], seen[-1]
    return Saturated(mean(running for _, running, _ in seen), (after - before) / (last_s - first_s))
