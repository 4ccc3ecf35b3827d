"""What everybody writes down: one line of JSON each, on disk before anything else is done."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from nubes.chaos.evidence import Ask, Broken, Run, Told

KINDS: dict[str, type[Any]] = {"ask": Ask, "told": Told, "broken": Broken}


class Journal:
    """One writer's lines. A line is whole, or its writer was killed while it wrote it: then nothing came of it."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, record: Ask | Told | Broken) -> None:
        os.write(self._fd, msgspec.json.encode([type(record).__name__.lower(), record]) + b"\n")
        os.fdatasync(self._fd)


def read(path: Path) -> Iterator[Any]:
    """The records of one journal."""
    for line in _lines(path):
        kind, fields = line
        yield msgspec.convert(fields, KINDS[kind])


def runs(folder: Path) -> list[Run]:
    """The executions that the functions noted."""
    found: list[Run] = []
    for path in sorted(folder.glob("*.runs")):
        begun: dict[str, float] = {}
        for token, what, at in _lines(path):
            if what == "begin":
                if token in begun:
                    found.append(Run(token, int(path.stem), begun.pop(token)))
                begun[token] = at
            else:
                found.append(Run(token, int(path.stem), begun.pop(token), at))
        found += [Run(token, int(path.stem), at) for token, at in begun.items()]
    return found


def overlapping(found: list[Run]) -> int:
    """How many executions began while another one of the same work went on, and came to its end."""
    by_token: dict[str, list[Run]] = defaultdict(list)
    for run in found:
        by_token[run.token].append(run)
    return sum(
        any(other is not run and other.begin_s < run.begin_s < other.end_s for other in several)
        for several in by_token.values()
        for run in several
    )


def _lines(path: Path) -> Iterator[Any]:
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            yield json.loads(line)
        except ValueError:
            continue  # its writer was killed within it, and another one went on
