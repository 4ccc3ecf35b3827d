"""Reads published traces of LLM requests."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from nubes.kernel.errors import UsageError
from nubes.workloads.draws import generator
from nubes.workloads.llm import FORMATS, LLMWorkload
from nubes.workloads.llm_synthetic import arrivals

LENGTHS = "Lengths of real requests"
MOONCAKE_BLOCK = 512  # tokens that one of its hash ids stands for


@dataclass(slots=True)
class _Columns:
    arrival_s: list[float] = field(default_factory=list)  # empty: the trace holds lengths alone
    prompt: list[int] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    blocks: list[tuple[int, ...]] = field(default_factory=list)


def read_llm(
    path: Path, name: str = "", seed: int = 0, rate: float | None = None, cv: float | None = None,
    limit: int | None = None, n: int | None = None,
) -> LLMWorkload:  # fmt: skip
    """Reads a trace of any format that is known, told apart by its columns. Raises `UsageError` naming file and line.

    Traces of lengths alone are shuffled and given Poisson arrivals (Gamma gaps with coefficient of variation `cv`) at
    `rate`, by default 1 a second. Timed ones are stretched to `rate`, if it is given.
    """
    import numpy as np

    kind, columns = _columns(path)
    if not columns.prompt:
        raise UsageError(f"{path} holds no requests.", "Is the file whole?")
    if n is not None and n < 1:
        raise UsageError(f"{n} requests are none.", "Take at least 1.")
    timed, name = bool(columns.arrival_s), name or path.stem
    prompt, output = np.array(columns.prompt), np.array(columns.output)
    keep = np.arange(len(prompt)) if limit is None else np.flatnonzero(prompt + output <= limit)
    dropped = len(prompt) - len(keep)
    if not len(keep):
        raise UsageError(f"No request of {path} has at most {limit} tokens.", "Raise limit.")
    said = f"{kind}, {len(keep):,} requests"
    said += f" ({dropped:,} with more than {limit:,} tokens dropped)" if dropped else ""
    if timed:
        if cv is not None or n is not None:
            raise UsageError(f"{path} holds arrivals of its own.", "Leave cv and n out; rate stretches its time.")
        arrival_s = np.array(columns.arrival_s)
        begun = float(arrival_s[0]) if kind.startswith("Azure") else 0.0
        every = LLMWorkload(
            name, f"{said}, as they came.", arrival_s - begun, prompt, output, float(arrival_s[-1]) - begun,
            tuple(columns.blocks) or None, MOONCAKE_BLOCK if columns.blocks else 0,
        )  # fmt: skip
        timed_ones = every.taking(keep)
        return timed_ones if rate is None else timed_ones.scaled(rate)
    draw = generator(seed, "llm", "pairs")
    order = draw.permutation(keep)[: len(keep) if n is None else n]
    when = arrivals(draw, 1.0 if rate is None else rate, len(order), 1.0 if cv is None else cv)
    gaps = "Poisson arrivals" if cv in (None, 1.0) else f"Gamma gaps (cv {cv:g})"
    return LLMWorkload(
        name, f"{said}; in random order, {gaps} at {1.0 if rate is None else rate:g} a second (seed {seed}).", when,
        prompt[order], output[order], float(when[-1]),
    )  # fmt: skip


def _columns(path: Path) -> tuple[str, _Columns]:
    """What a file holds. It is read once, as long as it does not change: who seeks a rate asks for it at many."""
    now = path.stat()
    return _read(path.absolute(), now.st_mtime_ns, now.st_size)


@lru_cache(maxsize=4)
def _read(path: Path, changed_ns: int, size_bytes: int) -> tuple[str, _Columns]:
    return _mooncake(path) if path.suffix == ".jsonl" else _table(path)


def _table(path: Path) -> tuple[str, _Columns]:
    with path.open(newline="") as file:
        reader = csv.reader(file)
        header = [column.strip() for column in next(reader, [])]
        rows = [(reader.line_num, row) for row in reader if row]
    read: Callable[[Any], float] = float
    if {"ContextTokens", "GeneratedTokens"} <= set(header):
        names = ("ContextTokens", "GeneratedTokens")
        when: str | None = "TIMESTAMP"
        if "TIMESTAMP" not in header or (rows and rows[0][1][header.index("TIMESTAMP")].strip(" X") == ""):
            when = None
        kind, read = ("Azure LLM inference trace" if when else LENGTHS), _instant
    elif {"num_prefill_tokens", "num_decode_tokens"} <= set(header):
        names = ("num_prefill_tokens", "num_decode_tokens")
        when = "arrived_at" if "arrived_at" in header else None
        kind = "Requests in Vidur's format" if when else LENGTHS
    else:
        missing = "has no header" if not header else f"has columns {', '.join(header)}"
        raise UsageError(f"{path}, line 1: it {missing}.", f"nubes reads {FORMATS}.")
    columns = _Columns()
    for line, row in rows:
        if len(row) != len(header):
            raise UsageError(f"{path}, line {line}: {len(row)} values for {len(header)} columns.", "Is it whole?")
        of = dict(zip(header, row, strict=True))
        _append(columns, path, line, of, names, when, read)
    return kind, columns


def _mooncake(path: Path) -> tuple[str, _Columns]:
    columns = _Columns()
    for line, text in _lines(path):
        try:
            of = json.loads(text)
        except ValueError as error:
            raise UsageError(f"{path}, line {line}: no JSON ({error}).", "Is the file whole?") from None
        if not isinstance(of, dict):
            raise UsageError(f"{path}, line {line}: no JSON object.", f"nubes reads {FORMATS}.")
        _append(columns, path, line, of, ("input_length", "output_length"), "timestamp", _milliseconds)
        blocks = of.get("hash_ids")
        if not isinstance(blocks, list) or not all(isinstance(block, int) for block in blocks):
            raise UsageError(f"{path}, line {line}: hash_ids is no list of whole numbers.", "Is it Mooncake's?")
        columns.blocks.append(tuple(blocks))
    return "Mooncake", columns


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open() as file:
        yield from ((line, text) for line, text in enumerate(file, 1) if text.strip())


def _append(
    columns: _Columns, path: Path, line: int, of: dict[str, Any], names: tuple[str, str], when: str | None,
    read: Callable[[Any], float],
) -> None:  # fmt: skip
    """One request, checked."""
    for name, column in zip(names, (columns.prompt, columns.output), strict=True):
        tokens = _value(path, line, of, name, int)
        if tokens < 1:
            raise UsageError(f"{path}, line {line}: {name} is {tokens}.", "A request has at least 1 token each way.")
        column.append(tokens)
    if when is None:
        return
    at = _value(path, line, of, when, read)
    if not abs(at) < float("inf"):
        raise UsageError(f"{path}, line {line}: {when} is {of[when]}.", "Give a finite time.")
    if columns.arrival_s and at < columns.arrival_s[-1]:
        raise UsageError(f"{path}, line {line}: it arrived before the request above it.", "Sort the file by arrival.")
    columns.arrival_s.append(at)


def _value(path: Path, line: int, of: dict[str, Any], name: str, read: Callable[[Any], Any]) -> Any:
    if name not in of:
        raise UsageError(f"{path}, line {line}: {name} is missing.", f"nubes reads {FORMATS}.")
    try:
        return read(of[name])
    except (TypeError, ValueError):
        raise UsageError(f"{path}, line {line}: {name} is {of[name]!r}.", "It cannot be read.") from None


def _instant(text: str) -> float:
    """Seconds since 1970; a time without a zone is UTC. Datasets have up to seven digits after the point."""
    at = datetime.fromisoformat(text.strip())
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _milliseconds(value: Any) -> float:
    return float(value) / 1000.0
