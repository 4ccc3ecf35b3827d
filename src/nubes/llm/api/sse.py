"""Server-sent events as bytes, built by hand: one is made for nearly every token."""

from __future__ import annotations

from typing import Any

import msgspec

DONE = b"data: [DONE]\n\n"
encode = msgspec.json.Encoder().encode


def data(value: Any) -> bytes:
    """An event without a name: OpenAI's."""
    return b"data: " + encode(value) + b"\n\n"


def event(kind: str, value: dict[str, Any]) -> bytes:
    """An event with a name, which is its `type` as well: that of /v1/responses and of Anthropic."""
    return b"event: " + kind.encode() + b"\ndata: " + encode({"type": kind, **value}) + b"\n\n"
