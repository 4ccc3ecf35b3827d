"""Texts that a prompt brings along: each is cut out as a piece of its own, whose KV may be used again anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from nubes.llm.api.fields import Document
from nubes.llm.live import Engine

END = "\n\n"  # after each, where no template says how they are written
LONG_CHARS = 50_000  # texts from here on are turned into tokens beside the event loop


def texts(documents: Sequence[str | Document] | None) -> list[str]:
    """Each as the model reads it: its title, if it has one, and its text."""
    found = []
    for one in documents or ():
        text = one if isinstance(one, str) else f"{one.title}\n{one.text}" if one.title else one.text
        if text.strip():
            found.append(text.strip())
    return found


def told(messages: Sequence[dict[str, Any]], documents: Sequence[str]) -> list[dict[str, Any]]:
    """Messages whose first one of a user begins with the documents, for templates that know of none."""
    at = next((nth for nth, one in enumerate(messages) if one["role"] == "user"), len(messages) - 1)
    said = {**messages[at], "content": END.join((*documents, str(messages[at]["content"])))}
    return [*messages[:at], said, *messages[at + 1 :]]


def cut(prompt: str, documents: Sequence[str]) -> list[str] | None:
    """What comes before the documents, each of them, and what follows; None if they are not in there in this order.

    Blanks behind a document belong to it, other text between two is a piece, too.
    """
    pieces: list[str] = []
    at = 0
    for text in documents:
        start = prompt.find(text, at)
        if start < 0:
            return None
        between = prompt[at:start]
        if pieces and not between.strip():
            pieces[-1] += between
        elif between or not pieces:
            pieces.append(between)
        pieces.append(text)
        at = start + len(text)
    rest = prompt[at:]
    blanks = len(rest) - len(rest.lstrip())
    pieces[-1] += rest[:blanks]
    return [*pieces, rest[blanks:]]


async def encoded(
    engine: Engine, pieces: Sequence[str | list[int]], documents: Sequence[str]
) -> tuple[list[int], tuple[int, ...]]:
    """The tokens of all pieces, and how many each but the last has. Documents hold plain text, no control tokens."""

    def encode() -> list[list[int]]:
        tokens, begin = engine.tokens, engine.tokens.encode("")  # what the model wants in front of a text
        found = []
        for nth, piece in enumerate(pieces):
            if isinstance(piece, str) and piece.strip() in documents:
                found.append(tokens.encode(piece, False))
                continue
            one = tokens.encode(piece) if isinstance(piece, str) else piece
            found.append(one[len(begin) :] if nth and begin and one[: len(begin)] == begin else one)
        return [one for one in found if one]

    long = sum(map(len, pieces)) >= LONG_CHARS
    found = await asyncio.to_thread(encode) if long else encode()
    return [token for one in found for token in one], tuple(len(one) for one in found[:-1])
