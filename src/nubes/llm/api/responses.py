"""POST /v1/responses, and GET and DELETE of those that were kept."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from nubes.llm.api import sse, turns
from nubes.llm.api.asking import Item, NamedFunction, Respond, TextFormat
from nubes.llm.api.endpoint import Answer
from nubes.llm.api.items import Output, as_message
from nubes.llm.api.problems import Problem, invalid, of_error, unsupported
from nubes.llm.api.sampling import grammar, sampling
from nubes.llm.api.service import Call, Model, Service, log, new_id
from nubes.llm.api.storage import STORED, Store
from nubes.llm.api.turns import Choice, Conversation, Tooling
from nubes.llm.spec import Grammar, Request

__all__ = ["STORED", "Respond", "Responses", "Store", "kept"]

LOGPROBS = "message.output_text.logprobs"


class Responses:
    """Answers, and keeps them unless asked not to."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def answer(self, service: Service, call: Call, asked: Respond) -> Answer:
        model = service.find(asked.model)
        _check(asked)
        history = self._history(call, asked)
        told = [{"role": "system", "content": asked.instructions}] if asked.instructions else []
        logprobs = LOGPROBS in (asked.include or ())
        how = sampling(
            asked, model.engine, max_tokens=asked.max_output_tokens, stop=None, grammar=_grammar(asked),
            logprobs=(asked.top_logprobs or 0) if logprobs else None,
        )  # fmt: skip
        effort = asked.reasoning.effort if asked.reasoning else None
        conversation = Conversation(
            messages=[*told, *history], extra={} if effort is None else {"reasoning_effort": effort}
        )
        wanted = asked.tool_choice or "auto"
        tooling = Tooling(
            tools=[
                {"type": "function", "function": {
                    "name": f.name, "description": f.description or "",
                    "parameters": f.parameters or {"type": "object", "properties": {}},
                }} for f in asked.tools or ()
            ],
            choice="=" + wanted.name if isinstance(wanted, NamedFunction) else wanted,
            many=asked.parallel_tool_calls is not False,
        )  # fmt: skip
        id = new_id("resp_")
        request = await turns.begin(model, call, asked, conversation, how, tooling, id=id)
        made = Made(service, call, asked, model, request, Output(logprobs), bool(tooling.shown()))
        keep = None if asked.store is False else lambda body: self._keep(call, made, body, history)
        return made.stream(keep) if asked.stream else await made.whole(keep)

    def _history(self, call: Call, asked: Respond) -> list[dict[str, Any]]:
        before: list[dict[str, Any]] = []
        if asked.previous_response_id is not None:
            found = self.store.get(asked.previous_response_id, call.user)
            if found is None:
                message = f"There is no response {asked.previous_response_id!r}: it was not stored, or left the store."
                raise Problem(400, message, "previous_response_id", "previous_response_not_found")
            before = found.history
        if isinstance(asked.input, str):
            return [*before, {"role": "user", "content": asked.input}]
        return [*before, *_messages(asked.input)]

    def _keep(self, call: Call, made: Made, body: bytes, history: list[dict[str, Any]]) -> None:
        self.store.put(made.request.id, call.user, body, [*history, as_message(made.output.items)])


def _check(asked: Respond) -> None:
    for at, what in enumerate(asked.include or ()):
        if what != LOGPROBS:
            raise unsupported(f"include[{at}]", f"Only {LOGPROBS!r} can be included.")
    if asked.text is not None and asked.text.verbosity not in (None, "medium"):
        raise unsupported("text.verbosity", "Ask for it in the instructions.")
    if asked.reasoning is not None and asked.reasoning.summary not in (None, "auto"):
        raise unsupported("reasoning.summary", "Nothing is summed up.")
    if asked.stream_options is not None and asked.stream_options.include_obfuscation:
        raise unsupported("stream_options.include_obfuscation", "Events are as long as their text.")


def _grammar(asked: Respond) -> Grammar | None:
    given = asked.text.format if asked.text else None
    made = grammar(asked)
    if given is None or given.type == "text":
        return made
    if made is not None:
        raise invalid("text.format", "Only one of text.format and vLLM's fields can shape the output.")
    if given.type == "json_object":
        return Grammar("json_object")
    if given.schema is None:
        raise Problem(
            400, "text.format of type json_schema needs a `schema`.", "text.format.schema", "missing_required_parameter"
        )
    return Grammar("json_schema", json.dumps(given.schema))


def _messages(items: list[Item]) -> list[dict[str, Any]]:
    """Input items as messages. Calls next to each other, and the text before them, are one message."""
    found: list[dict[str, Any]] = []
    for at, item in enumerate(items):
        where = f"input[{at}]"
        if item.type == "message":
            if item.role is None:
                raise Problem(400, f"'{where}.role' is missing.", f"{where}.role", "missing_required_parameter")
            role = "system" if item.role == "developer" else item.role
            found.append({"role": role, "content": turns.text_of(item.content, f"{where}.content")})
        elif item.type == "function_call":
            if item.call_id is None or item.name is None:
                message = "A function_call needs `call_id`, `name` and `arguments`."
                raise Problem(400, message, where, "missing_required_parameter")
            made = turns.tool_call(item.call_id, item.name, item.arguments or "{}")
            if not found or found[-1]["role"] != "assistant":
                found.append({"role": "assistant", "content": ""})
            found[-1].setdefault("tool_calls", []).append(made)
        elif item.type == "function_call_output":
            if item.call_id is None:
                raise Problem(400, f"'{where}.call_id' is missing.", f"{where}.call_id", "missing_required_parameter")
            text = turns.text_of(item.output, f"{where}.output")
            found.append({"role": "tool", "tool_call_id": item.call_id, "content": text})
        else:
            hint = "Items are message, function_call and function_call_output."
            raise unsupported(f"{where}.type", f"{item.type!r} is not understood. {hint}")
    if not found:
        raise invalid("input", "The input is empty.")
    return found


Keep = Callable[[bytes], None]


class Made:
    """A response on its way."""

    def __init__(
        self, service: Service, call: Call, asked: Respond, model: Model, request: Request, output: Output, tools: bool
    ) -> None:  # fmt: skip
        self.asked = asked
        self.call = call
        self.request = request
        self.output = output
        self.name = asked.model or model.name
        self.created = int(time.time())
        self.choice = Choice(tools)
        self.cached = 0
        self.deltas = service.generate(model, request, call)

    def body(self, status: str, error: dict[str, str] | None = None) -> dict[str, Any]:
        asked, builtins = self.asked, msgspec.to_builtins
        generated = len(self.choice.tokens)
        usage = {
            "input_tokens": len(self.request.prompt),
            "input_tokens_details": {"cached_tokens": self.cached, "cache_write_tokens": 0},
            "output_tokens": generated,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": len(self.request.prompt) + generated,
        }
        format = asked.text.format if asked.text and asked.text.format else TextFormat(type="text")
        ended = status != "in_progress"
        return {
            "id": self.request.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "background": False,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "model": self.name,
            "output": self.output.items if ended else [],
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": asked.previous_response_id,
            "reasoning": {"effort": asked.reasoning.effort if asked.reasoning else None, "summary": None},
            "service_tier": asked.service_tier if asked.service_tier not in (None, "auto") else "default",
            "store": asked.store is not False,
            "temperature": self.request.sampling.temperature,
            "text": {"format": {k: v for k, v in builtins(format).items() if v is not None}, "verbosity": "medium"},
            "tool_choice": builtins(asked.tool_choice or "auto"),
            "tools": builtins(asked.tools or []),
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": self.request.sampling.top_p,
            "truncation": "disabled",
            "usage": usage if ended else None,
            "user": asked.user,
            "metadata": asked.metadata or {},
        }

    def _status(self) -> str:
        return "incomplete" if self.choice.finish == "length" else "completed"

    async def whole(self, keep: Keep | None) -> bytes:
        async with aclosing(self.deltas):
            async for delta in self.deltas:
                self.cached = max(self.cached, delta.cached)
                for _ in self.output.add(self.choice.add(delta), delta.logprobs or ()):
                    pass
        for _ in self.output.close(self._status()):
            pass
        body = sse.encode(self.body(self._status()))
        if keep is not None:
            keep(body)
        return body

    async def stream(self, keep: Keep | None) -> AsyncGenerator[bytes, None]:
        output, begun = self.output, False
        try:
            async with aclosing(self.deltas):
                async for delta in self.deltas:
                    self.cached = max(self.cached, delta.cached)
                    if not begun:
                        begun = True
                        yield output.event("response.created", response=self.body("in_progress"))
                        yield output.event("response.in_progress", response=self.body("in_progress"))
                    for event in output.add(self.choice.add(delta), delta.logprobs or ()):
                        yield event
        except Exception as error:
            if not begun:
                raise
            problem = of_error(error, self.call.request_id)
            if problem.status == 500:
                log.error("request %s failed", self.call.request_id, exc_info=error)
            for event in output.close("incomplete"):
                yield event
            told = {"code": "server_error", "message": problem.message}
            yield output.event("response.failed", response=self.body("failed", told))
            told = {"message": problem.message, "code": problem.code or "server_error"}
            yield output.event("error", **told, param=problem.param, error={**told, "type": problem.type})
            return
        status = self._status()
        for event in output.close(status):
            yield event
        body = self.body(status)
        if keep is not None:
            keep(sse.encode(body))
        yield output.event(f"response.{status}", response=body)


def kept(store: Store) -> Callable[[HttpRequest], Awaitable[Response]]:
    """GET and DELETE /v1/responses/{id}."""

    async def endpoint(request: HttpRequest) -> Response:
        id, user = request.path_params["id"], request.state.call.user
        found = store.get(id, user)
        if found is None:
            raise Problem(404, f"There is no response {id!r}: it was not stored, or left the store.", "id", "not_found")
        if request.method == "DELETE":
            store.drop(id, user)
            return Response(
                sse.encode({"id": id, "object": "response", "deleted": True}), media_type="application/json"
            )
        if request.query_params.get("stream") == "true":
            raise unsupported("stream", "A response that was kept comes whole.")
        return Response(found.body, media_type="application/json")

    return endpoint
