"""One turn of a conversation, whichever API it came by: messages and tools in, text and tool calls out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from nubes.llm.api import documents as bringing
from nubes.llm.api import tools as hermes
from nubes.llm.api.fields import Generate, Message, Part, Tool
from nubes.llm.api.problems import Problem, invalid, unsupported
from nubes.llm.api.sampling import priority
from nubes.llm.api.service import Call, Model, new_id
from nubes.llm.api.tools import CallDelta, Hermes
from nubes.llm.engine import structured
from nubes.llm.live import Engine
from nubes.llm.spec import Delta, Finish, Grammar, Request, Sampling, TokenLogprob

LOWEST = -9999.0  # JSON knows no minus infinity


class Conversation(msgspec.Struct, kw_only=True):
    """What the model is shown. `messages` and `tools` are as chat templates know them."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = []
    generation_prompt: bool = True
    continued: bool = False  # the last message is the beginning of the answer
    extra: dict[str, Any] = {}  # for the template
    documents: list[str] = []


class Tooling(msgspec.Struct, kw_only=True):
    """Which tools may, or have to, be called."""

    tools: list[dict[str, Any]] = []
    choice: str = "auto"  # none, auto, required, or a tool's name after "="
    many: bool = True

    def shown(self) -> list[dict[str, Any]]:
        return [] if self.choice == "none" else self.tools

    def grammar(self, answer: Grammar | None, field: str) -> Grammar | None:
        """What the output has to look like. `field` is what a choice that cannot be made is blamed on."""
        if self.choice in ("none", "auto") and not (answer and self.shown()):
            return answer
        if not self.tools:
            raise invalid(field, f"{field} asks for a call, but there are no tools.")
        if self.choice == "auto":
            json = answer is not None and answer.kind in ("json_schema", "json_object")
            return hermes.grammar(self.tools, self.many, answer) if json else answer
        wanted = [tool for tool in self.tools if self.choice in ("required", "=" + tool["function"]["name"])]
        if not wanted:
            names = ", ".join(tool["function"]["name"] for tool in self.tools)
            raise invalid(field, f"{field} names no tool that is there. There are: {names}.")
        return hermes.grammar(wanted, self.many and self.choice == "required")


def plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates know them: the content one text, arguments of calls as objects."""
    found = []
    for at, message in enumerate(messages):
        one: dict[str, Any] = {
            "role": "system" if message.role == "developer" else message.role,
            "content": text_of(message.content, f"messages[{at}].content"),
        }
        if message.name:
            one["name"] = message.name
        if message.tool_call_id:
            one["tool_call_id"] = message.tool_call_id
        if message.tool_calls:
            one["tool_calls"] = [tool_call(c.id, c.function.name, c.function.arguments) for c in message.tool_calls]
        found.append(one)
    return found


def tool_call(id: str, name: str, arguments: str) -> dict[str, Any]:
    """A call that was made. Arguments that are no JSON stay as they were written."""
    try:
        decoded = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        decoded = arguments
    return {"id": id, "type": "function", "function": {"name": name, "arguments": decoded}}


def text_of(content: str | Sequence[Part] | None, field: str) -> str:
    """The text of a message's parts. Raises `Problem` for those that are not text."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for at, part in enumerate(content):
        text = part.refusal if part.type == "refusal" else part.text
        if part.type not in ("text", "input_text", "output_text", "refusal"):
            raise unsupported(f"{field}[{at}].type", f"The model reads text, not {part.type!r}.")
        if text is None:
            raise Problem(400, f"A {part.type!r} part needs its text.", f"{field}[{at}]", "missing_required_parameter")
        texts.append(text)
    return "".join(texts)


def tool_dicts(tools: Sequence[Tool] | None, field: str = "tools") -> list[dict[str, Any]]:
    """Tools as chat templates know them."""
    found: dict[str, dict[str, Any]] = {}
    for at, tool in enumerate(tools or ()):
        f = tool.function
        if f.name in found:
            raise invalid(f"{field}[{at}].function.name", f"There are two tools named {f.name!r}.")
        parameters = f.parameters or {"type": "object", "properties": {}}
        function = {"name": f.name, "description": f.description or "", "parameters": parameters}
        found[f.name] = {"type": "function", "function": function}
    return list(found.values())


def _knows_tools(engine: Engine) -> bool:
    """Whether the model's template does anything with tools."""
    asked = [{"role": "user", "content": "?"}]
    tool = {"type": "function", "function": {"name": "probe", "description": "", "parameters": {"type": "object"}}}
    return engine.tokens.chat(asked) != engine.tokens.chat(asked, [tool])


def prompt(engine: Engine, asked: Conversation) -> str:
    """The text the model continues. Raises `UsageError` from its template, `Problem` for what cannot be continued."""
    messages, tools = asked.messages, asked.tools
    if (tools or any(m["role"] == "tool" or m.get("tool_calls") for m in messages)) and not _knows_tools(engine):
        messages, tools = hermes.spelled_out(messages, tools), []
    if not asked.continued:
        return engine.tokens.chat(messages, tools, asked.generation_prompt, **asked.extra)
    last = messages[-1]["content"].rstrip()
    text = engine.tokens.chat(messages, tools, False, **asked.extra)
    at = text.rfind(last)
    if not last or at < 0:
        raise invalid("continue_final_message", "The last message has no text in the prompt that could be continued.")
    return text[: at + len(last)]


def with_documents(engine: Engine, asked: Conversation) -> list[str]:
    """The prompt, cut where its documents begin and end. The template writes them, or they are put into a message."""
    if not asked.documents:
        return [prompt(engine, asked)]
    known = msgspec.structs.replace(
        asked, extra={**asked.extra, "documents": [{"title": "", "text": text} for text in asked.documents]}
    )
    put = msgspec.structs.replace(asked, messages=bringing.told(asked.messages, asked.documents))
    return (
        bringing.cut(prompt(engine, known), asked.documents)
        or bringing.cut(text := prompt(engine, put), asked.documents)
        or [text]
    )


async def encoded(engine: Engine, text: str) -> list[int]:
    """Tokens of a text, without holding everybody else up."""
    if len(text) < bringing.LONG_CHARS:
        return engine.tokens.encode(text)
    return await asyncio.to_thread(engine.tokens.encode, text)


def check_length(engine: Engine, prompt: Sequence[int], max_tokens: int | None, field: str) -> None:
    """Raises `Problem` with both numbers if the model's context is too short."""
    wanted = len(prompt) + (1 if max_tokens is None else max_tokens)
    if not prompt:
        raise invalid(field, "The prompt is empty.")
    if wanted > engine.context:
        answer = "" if max_tokens is None else f" and {max_tokens} for the answer"
        message = (
            f"The context of {engine.name} is {engine.context} tokens, but {len(prompt)} for the prompt{answer} were "
            f"asked for. Shorten the prompt{' or ask for fewer tokens' if max_tokens else ''}."
        )
        raise Problem(400, message, field, "context_length_exceeded")


def check_prompt_logprobs(wanted: int | None, stream: bool | None) -> None:
    if wanted is not None and stream:
        raise invalid("prompt_logprobs", "prompt_logprobs come with the whole answer: leave out stream.")


async def request(
    model: Model, call: Call, asked: Generate, tokens: list[int], sampling: Sampling, *, id: str, n: int = 1,
    field: str = "messages", chunks: tuple[int, ...] = (),
) -> Request:  # fmt: skip
    """What the engine is asked. Raises `Problem` for what does not fit, `UsageError` for a bad grammar."""
    check_length(model.engine, tokens, sampling.max_tokens, field)
    if sampling.grammar is not None:
        await asyncio.to_thread(structured.check, sampling.grammar, model.engine.tokens)
    return Request(
        id=id,
        prompt=tokens,
        sampling=sampling,
        n=n,
        adapter=model.adapter,
        user=call.who(asked.user or asked.safety_identifier),
        priority=priority(asked),
        session=asked.session_id or "",
        cache_salt=asked.cache_salt or "",
        chunks=() if model.adapter else chunks,  # texts are computed without any
    )


async def begin(
    model: Model, call: Call, asked: Generate, conversation: Conversation, sampling: Sampling, tooling: Tooling, *,
    id: str, n: int = 1, choice_field: str = "tool_choice",
) -> Request:  # fmt: skip
    """The request of a turn: the prompt from the template, the grammar from the tools."""
    conversation.tools = tooling.shown()
    grammar = tooling.grammar(sampling.grammar, choice_field)
    stop = sampling.stop
    if conversation.tools and not tooling.many and tooling.choice == "auto":
        stop = (*stop, hermes.CLOSE)  # one call is enough
    sampling = msgspec.structs.replace(sampling, grammar=grammar, stop=stop)
    pieces = with_documents(model.engine, conversation)
    tokens, chunks = await bringing.encoded(model.engine, pieces, conversation.documents)
    return await request(model, call, asked, tokens, sampling, id=id, n=n, chunks=chunks)


class Choice:
    """One answer as it comes: `add` says what is new, the rest is what there is so far."""

    def __init__(self, tools: bool) -> None:
        self.text: list[str] = []
        self.calls: list[list[str]] = []  # id, name, arguments
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.prompt: list[TokenLogprob | None] = []
        self.finish: Finish | None = None
        self.stop_reason: str | int | None = None
        self._parser = Hermes() if tools else None

    def add(self, delta: Delta) -> Sequence[str | CallDelta]:
        self.tokens += delta.tokens
        if delta.logprobs:
            self.logprobs += delta.logprobs
        if delta.prompt is not None:
            self.prompt = delta.prompt
        found: list[str | CallDelta] = []
        if self._parser is None:
            if delta.text:
                found.append(delta.text)
        else:
            found = self._parser.feed(delta.text)
        if delta.finish is not None:
            if self._parser is not None:
                found += self._parser.end()
            self.finish = delta.finish
            self.stop_reason = None if delta.stop_reason == hermes.CLOSE else delta.stop_reason
        for one in found:
            if isinstance(one, str):
                self.text.append(one)
            elif one.name is not None:
                self.calls.append([new_id("call_"), one.name, one.arguments])
            else:
                self.calls[one.index][2] += one.arguments
        if delta.finish == "stop" and self.calls:
            self.finish = "tool_calls"
        return found

    def whole_text(self) -> str | None:
        """None if the answer is calls alone."""
        text = "".join(self.text)
        return None if self.calls and not text.strip() else text


def prompt_logprobs(scores: Sequence[TokenLogprob | None], top: int) -> list[dict[str, Any] | None]:
    """Log probabilities of a prompt's tokens as vLLM writes them: by token, that of the prompt first."""
    found: list[dict[str, Any] | None] = []
    for one in scores:
        if one is None:
            found.append(None)
            continue
        tops = {token: (logprob, nth, text) for nth, (token, text, _, logprob) in enumerate(one.top[:top], 1)}
        of = {one.token: (one.logprob, one.rank, one.text)} | tops
        found.append(
            {
                str(token): {"logprob": max(logprob, LOWEST), "rank": rank, "decoded_token": text}
                for token, (logprob, rank, text) in of.items()
            }
        )
    return found


def usage(prompt: int, generated: int, cached: int) -> Mapping[str, Any]:
    """OpenAI's `usage`."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
