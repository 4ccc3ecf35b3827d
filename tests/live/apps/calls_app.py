"""Functions that the tests of calls run."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import nubes

app = nubes.App("calls")


class Refused(Exception):
    """An exception of the user's own."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(what, code)
        self.what = what
        self.code = code


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("it holds a lock")
        self.lock = threading.Lock()


@app.function()
def add(a: int, b: int = 1) -> int:
    return a + b


@app.function()
def double_unless_three(x: int) -> int:
    if x == 3:
        raise ValueError(f"not {x}")
    return 2 * x


@app.function()
def after(seconds: float, value: object = None) -> object:
    time.sleep(seconds)
    return value


@app.function()
async def after_async(seconds: float, value: object = None) -> object:
    await asyncio.sleep(seconds)
    return value


@app.function()
def fail(how: str) -> None:
    if how == "own":
        raise Refused("no", 7)
    if how == "unpicklable":
        raise Unpicklable
    if how == "exit":
        sys.exit(3)
    if how == "connection":
        raise ConnectionResetError("by a peer of the function's")
    if how == "unpicklable result":
        return threading.Lock()  # type: ignore[return-value]
    deeper()


def deeper() -> None:
    raise KeyError("deep down")


@app.function()
def leave(code: object = None) -> None:
    sys.exit(code)  # type: ignore[arg-type]


@app.function()
async def leave_async(code: object = None) -> None:
    sys.exit(code)  # type: ignore[arg-type]


@app.function()
async def cancel_itself() -> None:
    raise asyncio.CancelledError


@app.function()
def say(text: str) -> None:
    print(text)
    print(f"{text} twice\n{text} thrice", file=sys.stderr)
    sys.stdout.write("no newline")


@app.function()
def count_to(n: int, fail_at: int = -1) -> Iterator[int]:
    for number in range(n):
        if number == fail_at:
            raise RuntimeError("lost count")
        yield number


@app.function(retries=2)
def count_in_tries(path: str, size: int, ends: str) -> Iterator[bytes]:
    """Counts to 6, in `size` bytes each, in three tries: the first ends after 3 items, the second after 1."""
    with open(path, "a") as file:
        file.write("x")
    tries = len(Path(path).read_text())
    for number in range(6):
        if number == {1: 3, 2: 1}.get(tries):
            if ends == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("lost count")
        yield bytes([number]) * size


@app.function()
async def count_async(n: int) -> AsyncIterator[int]:
    for number in range(n):
        await asyncio.sleep(0)
        yield number


@app.function()
def endless(path: str) -> Iterator[int]:
    number = 0
    while True:
        Path(path).write_text(str(number))
        yield number
        number += 1
        time.sleep(0.01)


@app.function()
def mark(path: str, seconds: float) -> None:
    """Leaves a trace when it begins and when it comes to its end."""
    Path(path + ".begun").touch()
    time.sleep(seconds)
    Path(path + ".done").touch()


@app.function()
def leave_or_mark(how: str, path: str) -> None:
    if how == "leave":
        sys.exit(1)
    time.sleep(0.1)
    Path(path + ".done").touch()


@app.function(timeout=0.3)
def too_slow() -> None:
    time.sleep(30)


@app.function(retries=nubes.Retries(max_retries=3, initial_delay_s=0.1, backoff_coefficient=2.0))
def third_time(path: str) -> int:
    """Fails twice; a line for each attempt."""
    with open(path, "a") as file:
        file.write(f"{time.time()}\n")
    attempts = len(Path(path).read_text().splitlines())
    if attempts < 3:
        raise OSError(f"attempt {attempts}")
    return attempts


@app.function(retries=1)
def crash_once(path: str) -> str:
    if not Path(path).exists():
        Path(path).touch()
        os._exit(9)
    return "survived"


@app.function()
def ask_another(n: int) -> int:
    """A function that calls functions."""
    return sum(add.map(range(n))) + add.remote(n)


@app.function()
def increment(path: str) -> int:
    with open(path, "a") as file:
        file.write("x")
    return len(Path(path).read_text())


@app.function()
def increment_slowly(path: str, until: str, size: int) -> bytes:
    """A line for each time it runs, and `size` bytes once there is a file `until`."""
    with open(path, "a") as file:
        file.write("x")
    while not Path(until).exists():
        time.sleep(0.01)
    return bytes(size)


@app.function()
def where() -> tuple[bool, int, str]:
    return nubes.is_local(), os.getpid(), os.environ["NUBES_FUNCTION"]


class PushedBack(Exception):
    __nubes_backpressure__ = "a service"


@app.function()
def refused() -> None:
    raise PushedBack()


@app.function()
async def refused_async() -> None:
    raise PushedBack()


@app.function()
@nubes.batched(max_batch_size=2, wait_ms=1)
def refused_batch(xs: list[int]) -> list[int]:
    raise PushedBack()
