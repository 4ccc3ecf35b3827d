"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from nubes.llm.api import documents, sse, turns
from nubes.llm.api.endpoint import Answer
from nubes.llm.api.fields import Chat, NamedTool, StreamOptions
from nubes.llm.api.problems import invalid, unsupported
from nubes.llm.api.sampling import grammar, sampling
from nubes.llm.api.service import Call, Model, Service, new_id
from nubes.llm.api.tools import CallDelta
from nubes.llm.api.turns import LOWEST, Choice, Conversation, Tooling
from nubes.llm.spec import Request, TokenLogprob


async def answer(service: Service, call: Call, asked: Chat) -> Answer:
    """A `chat.completion`, or its chunks."""
    model = service.find(asked.model)
    _check(asked)
    how = sampling(
        asked, model.engine, stop=asked.stop,
        max_tokens=asked.max_completion_tokens if asked.max_completion_tokens is not None else asked.max_tokens,
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        grammar=grammar(asked, asked.response_format), prompt_logprobs=asked.prompt_logprobs,
    )  # fmt: skip
    extra = dict(asked.chat_template_kwargs or {})
    if asked.reasoning_effort is not None:
        extra.setdefault("reasoning_effort", asked.reasoning_effort)
    conversation = Conversation(
        messages=turns.plain(asked.messages),
        generation_prompt=asked.add_generation_prompt is not False and not asked.continue_final_message,
        continued=bool(asked.continue_final_message),
        extra=extra,
        documents=documents.texts(asked.documents),
    )
    wanted = asked.tool_choice or "auto"
    tooling = Tooling(
        tools=turns.tool_dicts(asked.tools),
        choice="=" + wanted.function.name if isinstance(wanted, NamedTool) else wanted,
        many=asked.parallel_tool_calls is not False,
    )
    id = new_id("chatcmpl-")
    request = await turns.begin(model, call, asked, conversation, how, tooling, id=id, n=asked.n or 1)
    made = Completion(service, call, asked, model, request, bool(tooling.shown()))
    return made.stream() if asked.stream else await made.whole()


def _check(asked: Chat) -> None:
    if asked.top_logprobs is not None and not asked.logprobs:
        raise invalid("top_logprobs", "top_logprobs needs logprobs to be true.")
    if asked.continue_final_message and asked.add_generation_prompt:
        raise invalid("continue_final_message", "An answer either continues the last message or begins a new one.")
    if asked.stream_options is not None:
        if not asked.stream:
            raise invalid("stream_options", "stream_options needs stream to be true.")
        if asked.stream_options.include_obfuscation:
            raise unsupported("stream_options.include_obfuscation", "Chunks are as long as their text.")
    turns.check_prompt_logprobs(asked.prompt_logprobs, asked.stream)
    for at, message in enumerate(asked.messages):
        if message.role == "tool" and not message.tool_call_id:
            raise invalid(f"messages[{at}].tool_call_id", "A tool's message needs the id of the call it answers.")


class Completion:
    """An answer on its way."""

    def __init__(self, service: Service, call: Call, asked: Chat, model: Model, request: Request, tools: bool) -> None:
        self.asked = asked
        self.request = request
        self.name = asked.model or model.name
        self.tier = "default" if asked.service_tier == "auto" else asked.service_tier
        self.created = int(time.time())
        self.choices = [Choice(tools) for _ in range(request.n)]
        self.cached = 0
        self.deltas = service.generate(model, request, call)

    async def whole(self) -> bytes:
        async with aclosing(self.deltas):
            async for delta in self.deltas:
                self.cached = max(self.cached, delta.cached)
                self.choices[delta.index].add(delta)
        body = self._head("chat.completion")
        body["choices"] = [self._choice(i, choice) for i, choice in enumerate(self.choices)]
        body["usage"] = self._usage()
        if self.asked.return_token_ids:
            body["prompt_token_ids"] = self.request.prompt
        if self.asked.prompt_logprobs is not None:
            body["prompt_logprobs"] = turns.prompt_logprobs(self.choices[0].prompt, self.asked.prompt_logprobs)
        return sse.encode(body)

    def _head(self, kind: str) -> dict[str, Any]:
        head: dict[str, Any] = {"id": self.request.id, "object": kind, "created": self.created, "model": self.name}
        if self.tier:
            head["service_tier"] = self.tier
        return head

    def _usage(self) -> Any:
        generated = sum(len(choice.tokens) for choice in self.choices)
        return turns.usage(len(self.request.prompt), generated, self.cached)

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.whole_text(), "refusal": None}
        if choice.calls:
            message["tool_calls"] = [
                {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
                for id, name, arguments in choice.calls
            ]
        logprobs = {"content": logprobs_of(choice.logprobs), "refusal": None} if self.asked.logprobs else None
        found = {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish}
        found["stop_reason"] = choice.stop_reason
        if self.asked.return_token_ids:
            found["token_ids"] = choice.tokens
        return found

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Chunks. Their beginning and end are the same each time; what lies between is a delta."""
        asked, encode, options = self.asked, sse.encode, self.asked.stream_options or StreamOptions()
        counted, always = options.include_usage, options.include_usage and options.continuous_usage_stats
        head = b"data: " + encode(self._head("chat.completion.chunk"))[:-1] + b',"choices":[{"index":'
        tail = b'}],"usage":null}\n\n' if counted else b"}]}\n\n"
        plain = not (asked.logprobs or asked.return_token_ids)
        begun: set[int] = set()
        async with aclosing(self.deltas):
            async for delta in self.deltas:
                self.cached = max(self.cached, delta.cached)
                index = delta.index
                choice = self.choices[index]
                first = b'%b%d,"delta":' % (head, index)
                if index not in begun:
                    begun.add(index)
                    prompt = b',"prompt_token_ids":' + encode(self.request.prompt) if asked.return_token_ids else b""
                    role = b'{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
                    end = tail.replace(b"}]", b"}]" + prompt, 1) if prompt else tail
                    yield first + role + end
                parts = choice.add(delta)
                if always:
                    tail = b'}],"usage":' + encode(self._usage()) + b"}\n\n"
                more = b"" if plain else self._more(delta.logprobs, delta.tokens)
                if not parts and not plain and delta.tokens:
                    parts = [""]  # the text is held back, its tokens are not
                for part in parts:
                    body = b'{"content":' + encode(part) + b"}" if isinstance(part, str) else self._called(choice, part)
                    yield b'%b%b%b,"finish_reason":null%b' % (first, body, more or b',"logprobs":null', tail)
                    more = b""
                if delta.finish is not None:
                    ended = encode({"finish_reason": choice.finish, "stop_reason": choice.stop_reason})[1:-1]
                    yield b'%b{},"logprobs":null,%b%b' % (first, ended, tail)
        if counted:
            yield sse.data({**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()})
        yield sse.DONE

    def _more(self, logprobs: Sequence[TokenLogprob] | None, tokens: list[int]) -> bytes:
        of: Any = {"content": logprobs_of(logprobs or ()), "refusal": None} if self.asked.logprobs else None
        found = b',"logprobs":' + sse.encode(of)
        return found + b',"token_ids":' + sse.encode(tokens) if self.asked.return_token_ids else found

    @staticmethod
    def _called(choice: Choice, part: CallDelta) -> bytes:
        call: dict[str, Any] = {"index": part.index, "function": {"arguments": part.arguments}}
        if part.name is not None:
            call |= {"id": choice.calls[part.index][0], "type": "function"}
            call["function"] = {"name": part.name, "arguments": part.arguments}
        return sse.encode({"tool_calls": [call]})


def logprobs_of(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Log probabilities in the form of /v1/chat/completions."""
    return [
        {
            "token": one.text,
            "logprob": max(one.logprob, LOWEST),
            "bytes": list(one.raw),
            "top_logprobs": [
                {"token": text, "logprob": max(logprob, LOWEST), "bytes": list(raw)}
                for _, text, raw, logprob in one.top
            ],
        }
        for one in logprobs
    ]
