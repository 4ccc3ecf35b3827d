"""/v1/messages through Anthropic's official client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from llm.api_fakes import CALL, TOOL, FakeEngine, served, user
from nubes.kernel.errors import Overloaded
from nubes.llm.api import app

anthropic = pytest.importorskip("anthropic", reason="the anthropic client is not installed")

WEATHER = {"name": "weather", "description": "x", "input_schema": TOOL["function"]["parameters"]}


@pytest.fixture(scope="module")
def there() -> Iterator[tuple[str, FakeEngine]]:
    engine = FakeEngine(context=500)
    with served(app({"fake": engine})) as url:
        yield url, engine


@pytest.fixture(scope="module")
def client(there: Any) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=there[0], api_key="none", max_retries=0) as client:
        yield client


def ask(client: Any, text: str = "hello", **more: Any) -> Any:
    return client.messages.create(**{"model": "fake", "max_tokens": 100, "messages": user(text), **more})


def prompt(engine: FakeEngine) -> list[str]:
    return bytes(engine.requests[-1].prompt).decode().splitlines()


def test_an_answer(client: Any, engine: FakeEngine) -> None:
    answer = ask(client, system="short", extra_body={"temperature": 0.2, "top_k": 3}, metadata={"user_id": "ann"})
    assert [(block.type, block.text) for block in answer.content] == [("text", "HELLO")]
    assert (answer.stop_reason, answer.stop_sequence, answer.role) == ("end_turn", None, "assistant")
    assert answer.usage.output_tokens == 6
    total = answer.usage.input_tokens + answer.usage.cache_read_input_tokens
    assert total == len(engine.requests[-1].prompt)
    assert answer.usage.cache_read_input_tokens == 5
    assert prompt(engine) == ["[system] short", "[user] hello", "[assistant] "]
    request = engine.requests[-1]
    assert (request.user, request.sampling.top_k, request.sampling.temperature) == ("ann", 3, 0.2)
    assert client.messages.count_tokens(model="fake", messages=user("hello"), system="short").input_tokens == total


def test_ends(client: Any, engine: FakeEngine) -> None:
    engine.say = lambda _: "one two three"
    answer = ask(client, stop_sequences=[" three", "x"])
    assert (answer.content[0].text, answer.stop_reason, answer.stop_sequence) == ("one two", "stop_sequence", " three")
    answer = ask(client, max_tokens=3)
    assert (answer.content[0].text, answer.stop_reason) == ("one", "max_tokens")


def test_a_stream(client: Any, engine: FakeEngine) -> None:
    with client.messages.stream(model="fake", max_tokens=100, messages=user("hello")) as stream:
        assert "".join(stream.text_stream) == "HELLO"
        final = stream.get_final_message()
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", 6)
    events = list(ask(client, "hi", stream=True))
    assert [event.type for event in events] == [
        "message_start", "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    assert events[0].message.usage.cache_read_input_tokens == 5


def test_nothing_said(client: Any, engine: FakeEngine) -> None:
    engine.say = lambda _: ""
    assert ask(client).content == []
    assert [event.type for event in ask(client, stream=True)] == ["message_start", "message_delta", "message_stop"]


def test_tools(client: Any, engine: FakeEngine) -> None:
    engine.say = lambda _: "\n Let me see.\n" + CALL + "\n" + CALL.replace("Ulm", "Bonn") + "\nDone."
    answer = ask(client, tools=[WEATHER], max_tokens=300)
    assert answer.stop_reason == "tool_use"
    assert [block.type for block in answer.content] == ["text", "tool_use", "tool_use", "text"]
    assert answer.content[0].text == "\n Let me see.\n"
    assert [block.input for block in answer.content[1:3]] == [{"city": "Ulm"}, {"city": "Bonn"}]
    with client.messages.stream(model="fake", max_tokens=300, messages=user("?"), tools=[WEATHER]) as stream:
        final = stream.get_final_message()
    strip = [block.model_dump(include={"type", "text", "input", "name"}) for block in final.content]
    assert strip == [block.model_dump(include={"type", "text", "input", "name"}) for block in answer.content]
    assert final.stop_reason == "tool_use"


def test_tools_forced_and_forbidden(client: Any, engine: FakeEngine) -> None:
    engine.say = lambda _: CALL
    assert ask(client, tools=[WEATHER], tool_choice={"type": "none"}).content[0].type == "text"
    engine.say = lambda _: CALL + CALL
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    assert len(ask(client, tools=[WEATHER], tool_choice=choice).content) == 1
    pytest.importorskip("llguidance", reason="forced calls need llguidance")
    engine.say = lambda _: "No."
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        answer = ask(client, tools=[WEATHER], tool_choice=choice)
        assert {block.name for block in answer.content} == {"weather"}
    shape = {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"], "additionalProperties": False}
    answer = ask(client, output_config={"format": {"type": "json_schema", "schema": shape}})
    assert json.loads(answer.content[0].text) == {"a": None}


def test_conversations_with_tools(client: Any, engine: FakeEngine) -> None:
    messages: list[Any] = [
        *user("weather?"),
        {"role": "assistant", "content": [
            {"type": "text", "text": "Let me see."},
            {"type": "tool_use", "id": "1", "name": "weather", "input": {"city": "Ulm"}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "rain"}]},
            {"type": "tool_result", "tool_use_id": "2", "content": "gone", "is_error": True},
            {"type": "text", "text": "and?", "cache_control": {"type": "ephemeral"}}]},
    ]  # fmt: skip
    system = [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}]
    ask(client, messages=messages, system=system, tools=[WEATHER])
    assert prompt(engine) == [
        "[tool] weather", "[system] ab", "[user] weather?", "[assistant] Let me see.",
        "[call] {'name': 'weather', 'arguments': {'city': 'Ulm'}}", "[tool] rain", "[tool] Error: gone", "[user] and?",
        "[assistant] ",
    ]  # fmt: skip


def test_the_beginning_of_an_answer(client: Any, engine: FakeEngine) -> None:
    engine.say = lambda _: " a time"
    answer = ask(client, messages=[*user("tell"), {"role": "assistant", "content": "Once upon"}])
    assert bytes(engine.requests[-1].prompt).decode() == "[user] tell\n[assistant] Once upon"
    assert answer.content[0].text == " a time"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"max_tokens": None}, "max_tokens"), ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, r"messages\[0\].content\[0\].type"),
        ({"messages": [{"role": "system", "content": "x"}]}, r"messages\[.*\].role"), ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, r"tools\[0\].type"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"), ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"), ({"temperature": 9}, "temperature"),
    ],
)  # fmt: skip
def test_what_messages_cannot_do(http: httpx2.Client, engine: FakeEngine, more: Any, said: str) -> None:
    body = {"model": "fake", "max_tokens": 5, "messages": user("x"), **more}
    answer = http.post("/v1/messages", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert pytest.importorskip("re").search(said, answer.json()["error"]["message"])
    assert engine.requests == []


def test_errors_in_their_form(client: Any, http: httpx2.Client, engine: FakeEngine) -> None:
    with pytest.raises(anthropic.NotFoundError) as told:
        ask(client, model="claude")
    assert told.value.body["error"]["type"] == "not_found_error"
    assert told.value.body["request_id"] == told.value.response.headers["x-request-id"]
    with pytest.raises(anthropic.BadRequestError, match="500"):
        ask(client, "x" * 1000)
    engine.refuse = Overloaded("Too many.")
    with pytest.raises(anthropic.APIStatusError) as told:
        ask(client)
    assert (told.value.status_code, told.value.body["error"]["type"]) == (529, "overloaded_error")
    assert told.value.response.headers["retry-after"]
    answer = http.get("/v1/messages")
    assert (answer.status_code, answer.json()["type"]) == (405, "error")


def test_a_failure_in_the_middle(client: Any, http: httpx2.Client, engine: FakeEngine) -> None:
    engine.fail = RuntimeError("secret")
    body = {"model": "fake", "max_tokens": 9, "messages": user("hello"), "stream": True}
    text = http.post("/v1/messages", json=body).text
    assert text.rstrip().split("\n\n")[-1].startswith("event: error\ndata: ")
    assert "secret" not in text
    with pytest.raises(anthropic.APIStatusError):
        list(ask(client, stream=True))
