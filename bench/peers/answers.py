"""A peer's side of the pipe: JSON lines, requests on standard input and token times on standard output."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version

Requests = list[tuple[list[int], int]]  # prompt token ids, output tokens


def claim_stdout() -> int:
    """Keeps the real standard output for the answers; what libraries print goes to standard error. Call it first."""
    answers = os.dup(1)
    os.dup2(2, 1)
    return answers


def serve(answers: int, run: Callable[[Requests], list[list[float]]], *packages: str) -> None:
    """Answers until standard input ends; to an empty list of requests, with the versions of `packages`."""
    with os.fdopen(answers, "w") as out:
        for line in sys.stdin:
            requests = json.loads(line)
            answer = run(requests) if requests else {package: version(package) for package in packages}
            print(json.dumps(answer), file=out, flush=True)
