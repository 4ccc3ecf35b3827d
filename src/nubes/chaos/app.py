"""The app that is called while everything breaks. Its functions note each execution, so that they can be counted.

It is copied into the run's folder and deployed from there, as an app of anybody else would be.
"""

from __future__ import annotations

import json
import os
import time

import nubes
from nubes.chaos.evidence import answer
from nubes.chaos.evidence import large as content

app = nubes.App("chaos")


def note(ledger: str, token: str, what: str) -> None:
    line = json.dumps([token, what, time.monotonic()]) + "\n"
    fd = os.open(os.path.join(ledger, f"{os.getpid()}.runs"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


@app.function(cpu=0.05, memory="16MiB")
def work(ledger: str, token: str, seconds: float) -> str:
    note(ledger, token, "begin")
    time.sleep(seconds)
    note(ledger, token, "end")
    return answer(token)


@app.function(cpu=0.05, memory=("32MiB", "1GiB"))
def large(ledger: str, token: str, given: bytes) -> bytes:
    """Its argument and its result are too large to travel in a message."""
    note(ledger, token, "begin")
    made = content(token)
    if given != made:
        raise AssertionError(f"the argument of {token} is not what was sent")
    note(ledger, token, "end")
    return made


@app.function(cpu=0.05, memory="16MiB")
def fail(ledger: str, token: str) -> str:
    note(ledger, token, "begin")
    note(ledger, token, "end")
    raise ValueError(token)
