"""Classes, batching and concurrency, for the tests."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import nubes

app = nubes.App("classes")


@app.cls(max_instances=1)
class Counter:
    """State that lives in one instance, from its enter hook to its exit hook."""

    start: int = nubes.parameter(default=0)
    trace: str = nubes.parameter(default="")

    @nubes.enter()
    def begin(self) -> None:
        self.n = self.start

    @nubes.method()
    def up(self, by: int = 1) -> int:
        self.n += by
        return self.n

    @nubes.method()
    def countdown(self) -> Iterator[int]:
        yield from range(self.n, 0, -1)

    @nubes.method()
    async def up_async(self) -> int:
        await asyncio.sleep(0)
        return self.up(1)

    def not_a_method(self) -> None: ...

    @nubes.exit()
    def end(self) -> None:
        if self.trace:
            Path(self.trace).write_text(str(self.n))


@app.cls()
class Speller:
    """A method that yields, and no state."""

    @nubes.method()
    def spell(self, word: str) -> Iterator[str]:
        yield from word

    @nubes.method()
    def upper(self, word: str) -> str:
        return word.upper()


@app.cls()
class Positional:
    def __init__(self, a: int, b: str = "b") -> None:
        self.both = (a, b)

    @nubes.method()
    def show(self) -> tuple[int, str]:
        return self.both


@app.cls()
class Snapped:
    @nubes.enter(snap=True)
    def load(self) -> None:
        self.loaded_by = os.getpid()

    @nubes.enter()
    def begin(self) -> None:
        self.begun_by = os.getpid()

    @nubes.method()
    def pids(self) -> tuple[int, int, int]:
        return self.loaded_by, self.begun_by, os.getpid()


@app.cls()
class Broken:
    @nubes.enter()
    def begin(self) -> None:
        raise OSError("no disk here")

    @nubes.method()
    def use(self) -> None: ...


@app.function(max_instances=1)
@nubes.batched(max_batch_size=4, wait_ms=300)
def squares(xs: list[int]) -> list[tuple[int, int]]:
    """The square of each, and the size of the batch it was in."""
    return [(x * x, len(xs)) for x in xs]


@app.function(max_instances=1)
@nubes.batched(max_batch_size=3, wait_ms=50)
def too_few(xs: list[int]) -> list[int]:
    return xs[:-1]


@app.function(max_instances=1)
@nubes.batched(max_batch_size=2, wait_ms=50)
async def batched_async(xs: list[int], ys: list[int]) -> list[int]:
    await asyncio.sleep(0)
    return [x + y for x, y in zip(xs, ys, strict=True)]


@app.function(max_instances=1)
@nubes.concurrent(max_inputs=4)
def together(seconds: float) -> tuple[int, int]:
    """A thread each, in one process."""
    print(f"thread {threading.get_ident()}")
    time.sleep(seconds)
    return os.getpid(), threading.get_ident()


@app.function(max_instances=1)
@nubes.concurrent(max_inputs=100)
async def together_async(seconds: float, label: str = "") -> int:
    print(f"{label} begins")
    await asyncio.sleep(seconds)
    print(f"{label} ends")
    return os.getpid()


@app.function(max_instances=2)
def two_at_most(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


@app.function(min_instances=2)
def always_two() -> int:
    return os.getpid()


@app.function(buffer_instances=1, max_instances=6)
def one_ahead(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


@app.function(scaledown_window=0.3)
def short_lived() -> int:
    return os.getpid()


@app.function(single_use=True)
def once() -> int:
    return os.getpid()


@app.function(max_instances=1, max_queued=2)
def narrow(seconds: float) -> None:
    time.sleep(seconds)
