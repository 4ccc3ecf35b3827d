"""Request bodies: what each endpoint takes, of which type, and what it knows but cannot do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
from msgspec import Meta

from nubes.llm.api.problems import Problem, unsupported

Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Stops = Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(max_length=64)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Choices = Annotated[int, Meta(ge=1, le=128)]
Names = Annotated[list[str], Meta(min_length=1)]
Tier = Literal["auto", "default", "flex", "priority", "standard_only"]

T = TypeVar("T", bound="Body")


class Body(msgspec.Struct, kw_only=True):
    """A request body. `unsupported` fields are refused unless they say what is done anyway (`_HARMLESS`)."""

    unsupported: ClassVar[Mapping[str, str]] = {}

    model: str = ""


class Structure(msgspec.Struct, kw_only=True):
    """vLLM's `structured_outputs`: one of them."""

    json: str | dict[str, Any] | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: Names | None = None
    grammar: str | None = None


class StreamOptions(msgspec.Struct, kw_only=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None  # vLLM's: usage in every chunk


class Generate(Body, kw_only=True):
    """What all endpoints that generate have in common: OpenAI's sampling fields and vLLM's."""

    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None  # -1 and 0: all
    min_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    seed: Seed | None = None
    min_tokens: Count | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[Count] | None = None
    include_stop_str_in_output: bool | None = None
    structured_outputs: Structure | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: Names | None = None
    guided_grammar: str | None = None
    priority: int | None = None
    service_tier: Tier | None = None
    cache_salt: str | None = None
    session_id: str | None = None
    return_token_ids: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None  # a hint where to look for a prefix; ours is found by content


NO_MOVING = "KV does not move between servers on request."
GENERATE: Mapping[str, str] = {
    "kv_transfer_params": NO_MOVING,
    "prompt_cache_retention": "How long prefixes stay is the engine's decision.",
    "prompt_cache_options": "Prefixes are found by their content; nothing needs to be set.",
    "moderation": "Nothing is moderated.",
    "use_beam_search": "Use `n` or `best_of`.",
    "prompt_logprobs": "Use /v1/completions or /v1/chat/completions.",
    "truncate_prompt_tokens": "Shorten the prompt before sending it.",
    "length_penalty": "It belongs to beam search.",
    "bad_words": "Use `logit_bias`.",
    "allowed_token_ids": "Use `structured_outputs`.",
    "logits_processors": "Use `structured_outputs`.",
    "prompt_embeds": "Prompts are texts or tokens.",
    "skip_special_tokens": "Control tokens are no text; `return_token_ids` shows them.",
}

# Values that ask for what is done anyway, besides null, false and empty ones.
_HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "modalities": (["text"],),
    "verbosity": ("medium",),
    "truncation": ("disabled",),
    "prompt_cache_retention": ("in_memory", "in-memory"),
    "thinking": ({"type": "disabled"},),
    "speed": ("standard",),
    "length_penalty": (1.0,),
    "skip_special_tokens": (True,),
}


class Part(msgspec.Struct, kw_only=True):
    """One part of a message's content. Only text is understood; `type` is checked with the message's place known."""

    type: str
    text: str | None = None
    refusal: str | None = None


class Document(msgspec.Struct, kw_only=True):
    """A text that the prompt brings along, as vLLM and Cohere write it."""

    text: str
    title: str | None = None


class FunctionCall(msgspec.Struct, kw_only=True):
    name: str
    arguments: str = "{}"


class ToolCall(msgspec.Struct, kw_only=True):
    function: FunctionCall
    id: str = ""
    type: str = "function"


class Message(msgspec.Struct, kw_only=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None


class Function(msgspec.Struct, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, kw_only=True):
    type: Literal["function"]
    function: Function


class NamedFunction(msgspec.Struct, kw_only=True):
    name: str


class NamedTool(msgspec.Struct, kw_only=True):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(msgspec.Struct, kw_only=True):
    name: str = ""
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class Format(msgspec.Struct, kw_only=True):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Chat(Generate, kw_only=True):
    unsupported = {
        **GENERATE,
        "functions": "Use `tools`.",
        "function_call": "Use `tool_choice`.",
        "audio": "Answers are text.",
        "modalities": "Answers are text.",
        "prediction": "Speculation is the engine's own.",
        "web_search_options": "Give the model a tool of yours.",
        "store": "Answers are not kept; /v1/responses keeps them.",
        "verbosity": "Ask for it in the messages.",
        "chat_template": "The model's own is used; `chat_template_kwargs` reach it.",
        "echo": "Use /v1/completions.",
    }

    messages: Annotated[list[Message], Meta(min_length=1)]
    documents: list[str | Document] | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: Positive | None = None
    max_tokens: Positive | None = None
    n: Choices | None = None
    stop: str | Stops | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: Format | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class Completion(Generate, kw_only=True):
    unsupported = {**GENERATE, "suffix": "Models here continue a text, they do not fill gaps."}

    prompt: str | list[str | Count | list[Count]]
    documents: list[str | Document] | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    n: Choices | None = None
    best_of: Choices | None = None
    echo: bool | None = None
    stop: str | Stops | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class Embeddings(Body, kw_only=True):
    input: str | list[str | Count | list[Count]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Positive | None = None
    user: str | None = None


class Tokenize(Body, kw_only=True):
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class LoadAdapter(Body, kw_only=True):
    lora_name: Annotated[str, Meta(min_length=1)]
    lora_path: Annotated[str, Meta(min_length=1)]


class UnloadAdapter(Body, kw_only=True):
    lora_name: Annotated[str, Meta(min_length=1)]


class Detokenize(Body, kw_only=True):
    tokens: list[Count]


_AT = re.compile(r"^(?P<what>.*?)(?: - at `(?P<where>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(\w+)`")


def decode(body: bytes, kind: type[T]) -> tuple[T, list[str]]:
    """A body as `kind`, and the names in it that nobody knows. Raises `Problem` that names the field."""
    try:
        given = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError as error:
        raise Problem(400, f"The body must be a JSON object: {error}.", code="invalid_json") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, f"The body is not JSON: {error}.", code="invalid_json") from None
    known = kind.__struct_fields__
    strangers = [name for name in given if name not in known]
    for name in strangers:
        if name in kind.unsupported and not _harmless(name, given[name]):
            raise unsupported(name, kind.unsupported[name])
    try:
        asked = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _problem(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, f"The body is not JSON: {error}.", code="invalid_json") from None
    return asked, [name for name in strangers if name not in kind.unsupported]


def _harmless(name: str, raw: msgspec.Raw) -> bool:
    value = msgspec.json.decode(raw)
    return value is None or value is False or value in ([], {}) or value in _HARMLESS.get(name, ())


def _problem(text: str) -> Problem:
    """msgspec's message, with the field it is about as `param`."""
    found = _AT.match(text)
    what, where = (found["what"], found["where"] or "$") if found else (text, "$")
    param = where.removeprefix("$").removeprefix(".")
    missing = _MISSING.search(what)
    if missing:
        param = f"{param}.{missing[1]}".removeprefix(".")
        return Problem(400, f"{param!r} is missing.", param, "missing_required_parameter")
    return Problem(400, f"{param!r}: {what[:1].lower()}{what[1:]}.", param or None, "invalid_type")
