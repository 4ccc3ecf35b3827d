"""The body of /v1/responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from nubes.llm.api.fields import GENERATE, Generate, Part, Positive, StreamOptions


class Item(msgspec.Struct, kw_only=True):
    """An item of the input: a message, a call that was made, or what came of it."""

    type: str = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None


class Function(msgspec.Struct, kw_only=True):
    type: Literal["function"]
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(msgspec.Struct, kw_only=True):
    type: Literal["function"]
    name: str


class TextFormat(msgspec.Struct, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class Text(msgspec.Struct, kw_only=True):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(msgspec.Struct, kw_only=True):
    effort: str | None = None
    summary: str | None = None


class Respond(Generate, kw_only=True):
    unsupported: ClassVar[Mapping[str, str]] = {
        **GENERATE,
        "background": "Keep the connection open until the answer is there.",
        "conversation": "Use `previous_response_id`.",
        "prompt": "Templates of prompts are not kept: send the text.",
        "truncation": "Shorten the input before sending it.",
        "max_tool_calls": "Tools are called by you.",
        "context_management": "Shorten the input before sending it.",
    }

    input: str | list[Item]
    instructions: str | None = None
    max_output_tokens: Positive | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream_options: StreamOptions | None = None
    text: Text | None = None
    tools: list[Function] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = None
    include: list[str] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    reasoning: Reasoning | None = None
    metadata: dict[str, str] | None = None
