"""The output of /v1/responses as it comes: a list of items, and the events that tell of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from nubes.llm.api import sse
from nubes.llm.api.chat import logprobs_of
from nubes.llm.api.service import new_id
from nubes.llm.api.tools import CallDelta
from nubes.llm.spec import TokenLogprob


class Output:
    """Messages and function calls, in the order they came. Its events are numbered through."""

    def __init__(self, logprobs: bool) -> None:
        self.items: list[dict[str, Any]] = []
        self.events = 0
        self._logprobs = logprobs
        self._texts: list[str] = []  # of the item under way
        self._seen: list[TokenLogprob] = []
        self._open = False
        self._blank = ""  # before anything else: it counts only if text follows

    def event(self, kind: str, **value: Any) -> bytes:
        self.events += 1
        return sse.event(kind, {"sequence_number": self.events - 1, **value})

    def add(self, parts: Sequence[str | CallDelta], logprobs: Sequence[TokenLogprob]) -> Iterator[bytes]:
        self._seen += logprobs if self._logprobs else ()
        for part in parts:
            if isinstance(part, CallDelta):
                yield from self._call(part)
            elif not self._open and part.isspace():
                self._blank += part
            else:
                yield from self._text(self._blank + part)
                self._blank = ""

    def close(self, status: str) -> Iterator[bytes]:
        """Ends the item under way, if there is one."""
        if not self._open:
            return
        self._open = False
        item, at, text = self.items[-1], len(self.items) - 1, "".join(self._texts)
        item["status"] = status
        where: dict[str, Any] = {"item_id": item["id"], "output_index": at}
        if item["type"] == "function_call":
            item["arguments"] = text
            yield self.event("response.function_call_arguments.done", **where, name=item["name"], arguments=text)
        else:
            part = {**_part(), "text": text, "logprobs": logprobs_of(self._seen)}
            item["content"] = [part]
            where["content_index"] = 0
            yield self.event("response.output_text.done", **where, text=text, logprobs=part["logprobs"])
            yield self.event("response.content_part.done", **where, part=part)
        yield self.event("response.output_item.done", output_index=at, item=item)

    def _begin(self, item: dict[str, Any]) -> Iterator[bytes]:
        self.items.append(item)
        self._open, self._texts = True, []
        yield self.event("response.output_item.added", output_index=len(self.items) - 1, item=item)

    def _text(self, text: str) -> Iterator[bytes]:
        if not self._open or self.items[-1]["type"] != "message":
            yield from self.close("completed")
            item = {
                "type": "message",
                "role": "assistant",
                "content": [],
                "status": "in_progress",
                "id": new_id("msg_"),
            }
            yield from self._begin(item)
            where = {"item_id": item["id"], "output_index": len(self.items) - 1, "content_index": 0}
            yield self.event("response.content_part.added", **where, part=_part())
        self._texts.append(text)
        yield self._delta("response.output_text.delta", text, content_index=0, logprobs=logprobs_of(self._seen[-1:]))

    def _call(self, part: CallDelta) -> Iterator[bytes]:
        if part.name is not None:
            yield from self.close("completed")
            item = {
                "type": "function_call", "id": new_id("fc_"), "call_id": new_id("call_"), "name": part.name,
                "arguments": "", "status": "in_progress",
            }  # fmt: skip
            yield from self._begin(item)
        if part.arguments:
            self._texts.append(part.arguments)
            yield self._delta("response.function_call_arguments.delta", part.arguments)

    def _delta(self, kind: str, text: str, **more: Any) -> bytes:
        at = len(self.items) - 1
        return self.event(kind, item_id=self.items[at]["id"], output_index=at, delta=text, **more)


def _part() -> dict[str, Any]:
    return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}


def as_message(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The items of one answer as the assistant's message that a chat template knows."""
    from nubes.llm.api.turns import tool_call

    text = "".join(part["text"] for item in items if item["type"] == "message" for part in item["content"])
    message: dict[str, Any] = {"role": "assistant", "content": text}
    calls = [item for item in items if item["type"] == "function_call"]
    if calls:
        message["tool_calls"] = [tool_call(c["call_id"], c["name"], c["arguments"]) for c in calls]
    return message
