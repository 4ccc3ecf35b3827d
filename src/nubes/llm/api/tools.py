"""Tool calls written as text, the `hermes` way: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

SmolLM2, Hermes and Qwen models are taught this form (Nous Research's Hermes function calling). A call is read while it
is written; where it is to be forced, a grammar describes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from nubes.llm.spec import Grammar

OPEN = "<tool_call>"
CLOSE = "</tool_call>"
HEAD_CHARS = 4096  # a call whose name is not known by then is read when it is whole

# Up to the brace that opens the arguments. Anything else is read when it is whole.
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')


class CallDelta(msgspec.Struct, frozen=True):
    """More of a tool call. Its first delta has the name; `arguments` are pieces of JSON text."""

    index: int
    name: str | None
    arguments: str = ""


class Hermes:
    """Tells text and tool calls apart as they come. What only looked like a call is text: nothing is lost."""

    def __init__(self) -> None:
        self.calls = 0
        self._held = ""  # not yet decided
        self._state = "text"  # text, head (of a call), arguments, tail
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def feed(self, text: str) -> list[str | CallDelta]:
        self._held += text
        found: list[str | CallDelta] = []
        while self._step(found):
            pass
        return found

    def end(self) -> list[str | CallDelta]:
        """The rest, once nothing comes any more."""
        held, state = self._held, self._state
        self._held, self._state = "", "text"
        if state == "head":
            return [*self._whole(held, closed=False)]
        return [held] if state == "text" and self._worth(held) else []

    def _step(self, found: list[str | CallDelta]) -> bool:
        """Decides on what is held, as far as it can. False if more has to come first."""
        held = self._held
        if self._state == "text":
            at = held.find(OPEN)
            shown = held[:at] if at >= 0 else held[: len(held) - _overlap(held, OPEN)]
            if self._worth(shown):
                found.append(shown)
                held = held[len(shown) :]
            elif at >= 0:
                held = held[at:]
            self._held = held.removeprefix(OPEN) if at >= 0 else held
            self._state = "head" if at >= 0 else "text"
            return at >= 0
        if self._state == "head":
            head = _HEAD.match(held, 0, HEAD_CHARS)
            if head:
                found.append(CallDelta(self._next(), json.loads(head[1], strict=False)))
                self._held, self._state = held[head.end() :], "arguments"
                return True
            body, close, rest = held.partition(CLOSE)
            if close:
                found += self._whole(body, closed=True)
                self._held, self._state = rest, "text"
            return bool(close)
        if self._state == "arguments":
            end = self._scan(held)
            if held[:end]:
                found.append(CallDelta(self.calls - 1, None, held[:end]))
            self._held = held[end:]
            self._state = "arguments" if self._depth else "tail"
            return not self._depth
        _, close, rest = held.partition(CLOSE)
        if close:
            self._held, self._state = rest, "text"
        return bool(close)

    def _scan(self, text: str) -> int:
        """Where in `text` the arguments end."""
        for at, char in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = char == "\\"
                self._in_string = char != '"'
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if not self._depth:
                    return at + 1
        return len(text)

    def _whole(self, body: str, closed: bool) -> list[str | CallDelta]:
        try:
            call = json.loads(body)
            name, arguments = call["name"], call.get("arguments", call.get("parameters", {}))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return [f"{OPEN}{body}{CLOSE if closed else ''}"]
        if not isinstance(name, str):
            return [f"{OPEN}{body}{CLOSE if closed else ''}"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return [CallDelta(self._next(), name, text)]

    def _next(self) -> int:
        self.calls += 1
        return self.calls - 1

    def _worth(self, text: str) -> bool:
        """Blank text after a call only sets calls apart."""
        return bool(text) and not (self.calls and text.isspace())


def _overlap(text: str, mark: str) -> int:
    """How much of the end of `text` may be the beginning of `mark`."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)


def grammar(tools: Sequence[Mapping[str, Any]], many: bool, answer: Grammar | None = None) -> Grammar:
    """Calls of `tools` and nothing else; or, where there is one, an answer of the JSON that `answer` describes."""
    calls = [f"call_{i}" for i in range(len(tools))]
    rules = [f"start: {'calls | answer' if answer else 'calls'}", f"calls: call{' (NL call)*' if many else ''}"]
    rules += [f"call: {' | '.join(calls)}", 'NL: "\\n"']
    for i, tool in enumerate(tools):
        function = tool["function"]
        head = json.dumps(f'{OPEN}\n{{"name": {json.dumps(function["name"])}, "arguments": ')
        tail = json.dumps(f"}}\n{CLOSE}")
        rules += [
            f"call_{i}: {head} arguments_{i} {tail}",
            f"arguments_{i}: %json {json.dumps(one_line(function.get('parameters') or {'type': 'object'}))}",
        ]
    if answer:
        schema = json.loads(answer.text) if answer.text else {"type": "object"}
        rules.append(f"answer: %json {json.dumps(one_line(schema))}")
    return Grammar("lark", "\n".join(rules))


def one_line(schema: Any) -> Any:
    """The schema, for JSON written on one line, so that blanks cannot go on forever."""
    if not isinstance(schema, dict):
        return schema
    spaced = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return {"x-guidance": spaced, **schema}


_PROMPT = (
    "You may call functions to answer. Their signatures are within <tools></tools>:\n<tools>\n{tools}\n</tools>\n"
    "For each call write a JSON object with its name and arguments within <tool_call></tool_call>:\n"
    '<tool_call>\n{{"name": <function-name>, "arguments": <arguments-object>}}\n</tool_call>'
)


def spelled_out(messages: Sequence[dict[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tools, calls and their results as plain text, for a chat template that knows nothing of them."""
    plain = []
    for message in messages:
        if message["role"] == "tool":
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            plain.append({"role": "user", "content": text})
        elif message.get("tool_calls"):
            calls = [
                f"{OPEN}\n{json.dumps(call['function'], ensure_ascii=False)}\n{CLOSE}" for call in message["tool_calls"]
            ]
            plain.append({"role": "assistant", "content": "\n".join(filter(None, [message["content"], *calls]))})
        else:
            plain.append(message)
    if not tools:
        return plain
    prompt = _PROMPT.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    if plain and plain[0]["role"] == "system":
        return [{"role": "system", "content": f"{plain[0]['content']}\n\n{prompt}"}, *plain[1:]]
    return [{"role": "system", "content": prompt}, *plain]
