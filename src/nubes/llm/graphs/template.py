"""Prompt templates: text with {{input:x}} and {{output:y}} in it."""

from __future__ import annotations

import re

import msgspec

from nubes.kernel.errors import UsageError

_PLACE = re.compile(r"\{\{\s*(input|output)\s*:\s*([A-Za-z_]\w*)\s*\}\}")


class Text(msgspec.Struct, frozen=True):
    """What stands in the template itself."""

    text: str


class Input(msgspec.Struct, frozen=True):
    """Where a value is filled in."""

    name: str


class Output(msgspec.Struct, frozen=True):
    """Where the model writes."""

    name: str


Piece = Text | Input | Output


def parse(template: str) -> tuple[Piece, ...]:
    """The pieces of a template in order. Raises `UsageError` if the model has nothing to write, or twice the same."""
    pieces: list[Piece] = []
    at = 0
    for found in _PLACE.finditer(template):
        if found.start() > at:
            pieces.append(Text(template[at : found.start()]))
        pieces.append(Input(found[2]) if found[1] == "input" else Output(found[2]))
        at = found.end()
    if at < len(template):
        pieces.append(Text(template[at:]))
    outputs = [piece.name for piece in pieces if isinstance(piece, Output)]
    inputs = {piece.name for piece in pieces if isinstance(piece, Input)}
    if not outputs:
        raise UsageError("The template has no output.", "Write {{output:NAME}} where the model shall write.")
    twice = next((name for name in outputs if outputs.count(name) > 1 or name in inputs), None)
    if twice is not None:
        raise UsageError(
            f"The template has {twice!r} as an output and once more.",
            "Give each output a name of its own; what is written before is part of the prompt anyway.",
        )
    if isinstance(pieces[0], Output):
        raise UsageError("The template begins with an output.", "Put a prompt before it.")
    return tuple(pieces)
