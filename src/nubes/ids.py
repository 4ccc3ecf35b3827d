"""Ids of calls: numbers inside, short words outside."""

from __future__ import annotations

import os

from nubes.kernel.errors import UsageError

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: nothing that reads like something else


def new() -> int:
    """A call id that nobody else has."""
    return int.from_bytes(os.urandom(8), "little") >> 3


def show(call: int) -> str:
    """`fc-…`, as users see it."""
    digits = ""
    while call:
        call, digit = divmod(call, 32)
        digits = _ALPHABET[digit] + digits
    return "fc-" + (digits or "0")


def parse(text: str) -> int:
    """The number behind `fc-…`. Raises `UsageError`."""
    body = text.removeprefix("fc-").lower()
    if not body or any(letter not in _ALPHABET for letter in body):
        raise UsageError(f"{text!r} is not a call id.", "Call ids look like fc-1x9k2m4p7qr3t; `nubes ps` lists them.")
    value = 0
    for letter in body:
        value = value * 32 + _ALPHABET.index(letter)
    return value
