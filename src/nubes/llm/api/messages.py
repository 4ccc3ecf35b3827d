"""Anthropic's POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from nubes.llm.api import sse, turns
from nubes.llm.api.endpoint import Answer
from nubes.llm.api.fields import GENERATE, Body, Generate, Positive, Stops
from nubes.llm.api.problems import Problem, invalid, unsupported
from nubes.llm.api.sampling import grammar, sampling
from nubes.llm.api.service import Call, Model, Service, new_id
from nubes.llm.api.tools import CallDelta
from nubes.llm.api.turns import Choice, Conversation, Tooling
from nubes.llm.spec import Grammar, Request

_STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class Block(msgspec.Struct, kw_only=True):
    """A part of a message. `cache_control` needs nothing done: prefixes are found by their content."""

    type: str
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[Block] | None = None
    is_error: bool | None = None


class Message(msgspec.Struct, kw_only=True):
    role: Literal["user", "assistant"]
    content: str | list[Block]


class Tool(msgspec.Struct, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    input_schema: dict[str, Any] | None = None
    description: str | None = None
    type: str | None = None


class ToolChoice(msgspec.Struct, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Metadata(msgspec.Struct, kw_only=True):
    user_id: str | None = None


class OutputFormat(msgspec.Struct, kw_only=True):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, kw_only=True):
    format: OutputFormat | None = None
    effort: str | None = None


_REFUSED = {
    **GENERATE,
    "thinking": "Models here do not think aloud.",
    "container": "Nothing runs code here.",
    "mcp_servers": "Tools are called by you.",
    "context_management": "Shorten the messages before sending them.",
    "speed": "Requests go by `priority`.",
}


class Messages(Generate, kw_only=True):
    unsupported = _REFUSED

    max_tokens: Positive
    messages: Annotated[list[Message], Meta(min_length=1)]
    system: str | list[Block] | None = None
    stop_sequences: Stops | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    metadata: Metadata | None = None
    output_config: OutputConfig | None = None
    cache_control: dict[str, Any] | None = None


class CountTokens(Body, kw_only=True):
    unsupported = _REFUSED

    messages: Annotated[list[Message], Meta(min_length=1)]
    system: str | list[Block] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    cache_control: dict[str, Any] | None = None


async def answer(service: Service, call: Call, asked: Messages) -> Answer:
    """A message, or its events."""
    model = service.find(asked.model)
    config = asked.output_config or OutputConfig()
    shape = grammar(asked)
    if config.format is not None:
        if shape is not None:
            raise invalid("output_config.format", "Only one of output_config.format and vLLM's fields can shape it.")
        shape = Grammar("json_schema", json.dumps(config.format.schema))
    how = sampling(
        asked, model.engine, max_tokens=asked.max_tokens, stop=asked.stop_sequences, logprobs=None, grammar=shape
    )
    if asked.metadata is not None and asked.user is None:
        asked.user = asked.metadata.user_id
    tooling = _tooling(asked)
    conversation = _conversation(asked)
    if config.effort is not None:
        conversation.extra["reasoning_effort"] = config.effort
    request = await turns.begin(model, call, asked, conversation, how, tooling, id=new_id("msg_"))
    made = Made(service, call, asked, model, request, bool(tooling.shown()))
    return made.stream() if asked.stream else await made.whole()


async def count(service: Service, call: Call, asked: CountTokens) -> bytes:
    """How many tokens the prompt of a conversation has."""
    engine = service.find(asked.model).engine
    conversation = _conversation(asked)
    conversation.tools = _tooling(asked).shown()
    return sse.encode({"input_tokens": len(await turns.encoded(engine, turns.prompt(engine, conversation)))})


def _tooling(asked: Messages | CountTokens) -> Tooling:
    tools = []
    for at, tool in enumerate(asked.tools or ()):
        if tool.type not in (None, "custom"):
            raise unsupported(f"tools[{at}].type", f"{tool.type!r} runs nowhere here: give your own tools.")
        parameters = tool.input_schema or {"type": "object", "properties": {}}
        function = {"name": tool.name, "description": tool.description or "", "parameters": parameters}
        tools.append({"type": "function", "function": function})
    wanted = asked.tool_choice or ToolChoice(type="auto")
    if wanted.type == "tool" and not wanted.name:
        raise Problem(400, "'tool_choice.name' is missing.", "tool_choice.name", "missing_required_parameter")
    choice = {"any": "required", "tool": f"={wanted.name}"}.get(wanted.type, wanted.type)
    return Tooling(tools=tools, choice=choice, many=not wanted.disable_parallel_tool_use)


def _conversation(asked: Messages | CountTokens) -> Conversation:
    found: list[dict[str, Any]] = []
    system = _text(asked.system, "system")
    if system:
        found.append({"role": "system", "content": system})
    for at, message in enumerate(asked.messages):
        found += _messages(message, f"messages[{at}].content")
    last = found[-1]
    continued = last["role"] == "assistant" and "tool_calls" not in last
    return Conversation(messages=found, continued=continued, generation_prompt=not continued)


def _messages(message: Message, where: str) -> list[dict[str, Any]]:
    """A message as chat templates know it: results of tools are messages of their own, before the text."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    texts, calls, results = [], [], []
    for at, block in enumerate(message.content):
        if block.type == "tool_use" and message.role == "assistant":
            if block.name is None or block.id is None:
                raise Problem(400, "A tool_use needs `id`, `name` and `input`.", f"{where}[{at}]")
            function = {"name": block.name, "arguments": block.input or {}}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif block.type == "tool_result" and message.role == "user":
            text = _text(block.content, f"{where}[{at}].content")
            text = f"Error: {text}" if block.is_error else text
            results.append({"role": "tool", "tool_call_id": block.tool_use_id or "", "content": text})
        else:
            texts.append(_text([block], f"{where}", at))
    found: list[dict[str, Any]] = results
    if texts or calls or not results:
        one: dict[str, Any] = {"role": message.role, "content": "".join(texts)}
        found.append({**one, "tool_calls": calls} if calls else one)
    return found


def _text(content: str | Sequence[Block] | None, where: str, first: int = 0) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for at, block in enumerate(content, first):
        if block.type != "text" or block.text is None:
            raise unsupported(f"{where}[{at}].type", f"The model reads text, not {block.type!r}.")
    return "".join(block.text or "" for block in content)


class Made:
    """A message on its way. Its blocks are texts and uses of tools, in the order they came."""

    def __init__(
        self, service: Service, call: Call, asked: Messages, model: Model, request: Request, tools: bool
    ) -> None:
        self.asked = asked
        self.request = request
        self.name = asked.model or model.name
        self.choice = Choice(tools)
        self.cached = 0
        self.blocks: list[dict[str, Any]] = []  # `input` is still JSON text
        self._blank = ""
        self.deltas = service.generate(model, request, call)

    def _head(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        ended = self.choice.finish is not None
        return {
            "id": self.request.id, "type": "message", "role": "assistant", "model": self.name, "content": content,
            "usage": {"input_tokens": len(self.request.prompt) - self.cached, **self._usage()},
            **(self._end() if ended else {"stop_reason": None, "stop_sequence": None}),
        }  # fmt: skip

    def _usage(self) -> dict[str, int]:
        return {
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": self.cached,
            "output_tokens": len(self.choice.tokens),
        }

    def _end(self) -> dict[str, Any]:
        why = self.choice.stop_reason
        if isinstance(why, str) and why in (self.asked.stop_sequences or ()):
            return {"stop_reason": "stop_sequence", "stop_sequence": why}
        return {"stop_reason": _STOPS[self.choice.finish or "stop"], "stop_sequence": None}

    async def whole(self) -> bytes:
        async with aclosing(self.deltas):
            async for delta in self.deltas:
                self.cached = max(self.cached, delta.cached)
                for part in self.choice.add(delta):
                    self._add(part)
        content = [{**b, "input": _object(b["input"])} if b["type"] == "tool_use" else b for b in self.blocks]
        return sse.encode(self._head(content))

    def _add(self, part: str | CallDelta) -> tuple[bool, str] | None:
        """Puts a part into the blocks. Whether it began one, and its text; None if it is too early to tell."""
        if isinstance(part, CallDelta):
            if part.name is not None:
                id = self.choice.calls[part.index][0].replace("call_", "toolu_")
                self.blocks.append({"type": "tool_use", "id": id, "name": part.name, "input": part.arguments})
                return True, part.arguments
            self.blocks[-1]["input"] += part.arguments
            return False, part.arguments
        if self.blocks and self.blocks[-1]["type"] == "text":
            self.blocks[-1]["text"] += part
            return False, part
        text = self._blank + part
        if text.isspace():  # no block for blanks alone
            self._blank = text
            return None
        self._blank = ""
        self.blocks.append({"type": "text", "text": text})
        return True, text

    async def stream(self) -> AsyncGenerator[bytes, None]:
        begun = False
        async with aclosing(self.deltas):
            async for delta in self.deltas:
                self.cached = max(self.cached, delta.cached)
                if not begun:
                    begun = True
                    yield sse.event("message_start", {"message": self._head([])})
                for part in self.choice.add(delta):
                    added = self._add(part)
                    if added is None:
                        continue
                    new, text = added
                    at = len(self.blocks) - 1
                    block = self.blocks[at]
                    if new:
                        if at:
                            yield sse.event("content_block_stop", {"index": at - 1})
                        empty: dict[str, Any] = {"input": {}} if block["type"] == "tool_use" else {"text": ""}
                        yield sse.event("content_block_start", {"index": at, "content_block": {**block, **empty}})
                    kind = ("input_json_delta", "partial_json") if "input" in block else ("text_delta", "text")
                    yield sse.event("content_block_delta", {"index": at, "delta": {"type": kind[0], kind[1]: text}})
        if self.blocks:
            yield sse.event("content_block_stop", {"index": len(self.blocks) - 1})
        yield sse.event("message_delta", {"delta": self._end(), "usage": self._usage()})
        yield sse.event("message_stop", {})


def _object(text: str) -> Any:
    """The arguments of a call; those cut short are kept under a name of their own."""
    try:
        return json.loads(text) if text else {}
    except ValueError:
        return {"_incomplete": text}
