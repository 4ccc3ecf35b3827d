import sys
import time
from pathlib import Path
from typing import Literal

import nubes

app = nubes.App("shop")


@app.local_entrypoint()
def main(code: int = 0, *, remote: bool = False, where: Path = Path("x"), mode: Literal["a", "b"] = "a"):
    """Ends with a code of one's own."""
    print("main", code, remote, type(where).__name__, mode)
    if remote:
        print("got", add.remote(1, b=2))
    sys.exit(code)


@app.function()
def add(a: int, b: int = 1):
    print("adding")
    print("to the other", file=sys.stderr)
    return a + b


@app.function()
def count(n: int):
    yield from range(n)


@app.function()
def fail(text: str):
    raise KeyError(text)


@app.function()
def die():
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


@app.function()
def leave(code: int):
    sys.exit(code)


@app.function(timeout=0.3)
def late():
    time.sleep(30)


@app.function()
def sleep(seconds: float):
    time.sleep(seconds)
    return "slept"


@app.cls()
class Box:
    size: int = nubes.parameter(default=1)

    @nubes.method()
    def hold(self, times: int) -> int:
        return self.size * times

    @nubes.method()
    def parts(self, n: int):
        yield from range(n * self.size)
