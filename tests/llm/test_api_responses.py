"""/v1/responses through the official client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from llm.api_fakes import CALL, TOOL, FakeEngine, served
from nubes.llm.api import app
from nubes.llm.api.storage import Store

openai = pytest.importorskip("openai", reason="the openai client is not installed")

FUNCTION = {"type": "function", **TOOL["function"]}


@pytest.fixture(scope="module")
def there() -> Iterator[tuple[str, FakeEngine]]:
    engine = FakeEngine()
    with served(app({"fake": engine}, keys={"a": "ann", "b": "bob"}, stored=3)) as url:
        yield url, engine


def prompt(engine: FakeEngine) -> list[str]:
    return bytes(engine.requests[-1].prompt).decode().splitlines()


def test_an_answer(client: Any, engine: FakeEngine) -> None:
    answer = client.responses.create(
        model="fake", input="hello", instructions="short", temperature=0.5, metadata={"k": "v"}, max_output_tokens=50
    )
    assert answer.output_text == "HELLO"
    assert answer.status == "completed"
    assert answer.output[0].role == "assistant"
    assert prompt(engine) == ["[system] short", "[user] hello", "[assistant] "]
    assert (answer.usage.output_tokens, answer.usage.input_tokens_details.cached_tokens) == (6, 5)
    assert answer.usage.total_tokens == answer.usage.input_tokens + 6
    assert (answer.temperature, answer.max_output_tokens, answer.metadata) == (0.5, 50, {"k": "v"})
    assert (answer.instructions, answer.tool_choice, answer.tools, answer.store) == ("short", "auto", [], True)
    assert engine.requests[-1].sampling.max_tokens == 50
    assert engine.requests[-1].user == "ann"


def test_input_as_items(client: Any, engine: FakeEngine) -> None:
    client.responses.create(
        model="fake",
        input=[
            {"role": "developer", "content": "short"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
            {"type": "function_call", "call_id": "1", "name": "weather", "arguments": '{"city": "Ulm"}'},
            {"type": "function_call", "call_id": "2", "name": "weather", "arguments": '{"city": "Bonn"}'},
            {"type": "function_call_output", "call_id": "1", "output": "rain"},
            {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "sun"}]},
        ],
    )
    assert prompt(engine) == [
        "[system] short", "[user] weather?", "[assistant] ", "[call] {'name': 'weather', 'arguments': {'city': 'Ulm'}}",
        "[call] {'name': 'weather', 'arguments': {'city': 'Bonn'}}", "[tool] rain", "[tool] sun", "[assistant] ",
    ]  # fmt: skip


def test_a_stream_of_typed_events(client: Any, engine: FakeEngine) -> None:
    events = list(client.responses.create(model="fake", input="hi", stream=True))
    assert [event.type for event in events] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        "response.output_text.delta", "response.output_text.delta", "response.output_text.done",
        "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "HI"
    assert events[0].response.status == "in_progress"
    assert events[-1].response.output_text == "HI"
    assert events[-1].response.usage.output_tokens == 3
    assert {e.item_id for e in events if hasattr(e, "item_id")} == {events[-1].response.output[0].id}


def test_function_calls(client: Any, engine: FakeEngine) -> None:
    engine.say = lambda _: "Let me see.\n" + CALL + "\n" + CALL
    whole = client.responses.create(model="fake", input="?", tools=[FUNCTION])
    assert [item.type for item in whole.output] == ["message", "function_call", "function_call"]
    assert whole.output[1].arguments == '{"city": "Ulm"}'
    with client.responses.stream(model="fake", input="?", tools=[FUNCTION]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert [(i.type, getattr(i, "arguments", None)) for i in final.output] == [
        ("message", None), ("function_call", '{"city": "Ulm"}'), ("function_call", '{"city": "Ulm"}')]  # fmt: skip
    assert kinds.count("response.function_call_arguments.done") == 2
    assert kinds.count("response.output_item.done") == kinds.count("response.output_item.added") == 3
    assert kinds.index("response.output_text.done") < kinds.index("response.function_call_arguments.delta")
    engine.say = lambda _: "\n" + CALL
    assert [i.type for i in client.responses.create(model="fake", input="?", tools=[FUNCTION]).output] == [
        "function_call"
    ]
    pytest.importorskip("llguidance", reason="forced calls need llguidance")
    engine.say = lambda _: "No."
    forced = client.responses.create(
        model="fake", input="?", tools=[FUNCTION], tool_choice={"type": "function", "name": "weather"}
    )
    assert [item.name for item in forced.output] == ["weather"]


def test_json_on_request(client: Any, engine: FakeEngine) -> None:
    pytest.importorskip("llguidance", reason="structured output needs llguidance")
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    format = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    answer = client.responses.create(model="fake", input="?", text={"format": format})
    assert set(json.loads(answer.output_text)) == {"a"}
    assert answer.text.format.schema_ == schema
    answer = client.responses.create(model="fake", input="?", text={"format": {"type": "json_object"}})
    assert isinstance(json.loads(answer.output_text), dict)


def test_log_probabilities(client: Any, engine: FakeEngine) -> None:
    asked: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    answer = client.responses.create(model="fake", input="hi", **asked)
    assert [one.token for one in answer.output[0].content[0].logprobs] == ["H", "I", ""]


def test_cut_short(client: Any, engine: FakeEngine) -> None:
    answer = client.responses.create(model="fake", input="hello", max_output_tokens=2)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (answer.output_text, answer.output[0].status) == ("HE", "incomplete")
    events = list(client.responses.create(model="fake", input="hello", max_output_tokens=2, stream=True))
    assert events[-1].type == "response.incomplete"


@pytest.mark.parametrize("stream", [False, True])
def test_going_on_from_an_answer(client: Any, engine: FakeEngine, stream: bool) -> None:
    def ask(**more: Any) -> Any:
        made = client.responses.create(model="fake", stream=stream, **more)
        return list(made)[-1].response if stream else made

    first = ask(input="one", instructions="loud")
    second = ask(input="two", previous_response_id=first.id)
    assert prompt(engine) == ["[user] one", "[assistant] ONE", "[user] two", "[assistant] "]  # without instructions
    ask(input="three", previous_response_id=second.id)
    assert prompt(engine)[2:5] == ["[user] two", "[assistant] TWO", "[user] three"]
    again = client.responses.retrieve(second.id)
    assert again.output_text == "TWO"
    assert again.previous_response_id == first.id
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(second.id)
    with pytest.raises(openai.BadRequestError) as told:
        ask(input="x", previous_response_id=second.id)
    assert told.value.code == "previous_response_not_found"


def test_what_is_kept_and_from_whom(there: Any, client: Any, engine: FakeEngine) -> None:
    secret = client.responses.create(model="fake", input="mine")
    other = openai.OpenAI(base_url=there[0] + "/v1", api_key="b", max_retries=0)
    for ask in (
        lambda: other.responses.retrieve(secret.id),
        lambda: other.responses.delete(secret.id),
    ):
        with pytest.raises(openai.NotFoundError):
            ask()
    with pytest.raises(openai.BadRequestError):
        other.responses.create(model="fake", input="and?", previous_response_id=secret.id)
    unkept = client.responses.create(model="fake", input="x", store=False)
    assert unkept.store is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unkept.id)
    assert client.responses.retrieve(secret.id)
    for _ in range(3):  # as many as are kept
        client.responses.create(model="fake", input="x")
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(secret.id)


def test_the_store_is_bounded() -> None:
    store = Store(count=100, size_bytes=1000)
    for i in range(50):
        store.put(str(i), "ann", b"x" * 90, [])
    assert store.used_bytes <= 1000
    assert store.get("0", "ann") is None
    assert store.get("49", "ann") is not None
    store.put("big", "ann", b"x" * 2000, [])
    assert store.get("big", "ann") is None
    assert store.used_bytes == 0


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"background": True}, "background"), ({"conversation": "c"}, "conversation"), ({"truncation": "auto"}, "truncation"),
        ({"prompt": {"id": "p"}}, "prompt"), ({"include": ["reasoning.encrypted_content"]}, "include[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"), ({"input": []}, "input"), ({"input": 7}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"), ({"input": [{"content": "x"}]}, "input[0].role"),
        ({"text": {"verbosity": "high"}}, "text.verbosity"), ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"max_output_tokens": 0}, "max_output_tokens"), ({"tool_choice": "required"}, "tool_choice"),
    ],
)  # fmt: skip
def test_what_responses_cannot_do(http: httpx2.Client, engine: FakeEngine, more: Any, param: str) -> None:
    answer = http.post("/v1/responses", json={"model": "fake", "input": "x", **more})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert engine.requests == []


def test_defaults_spelled_out_are_fine(http: httpx2.Client, engine: FakeEngine) -> None:
    more = {"background": False, "truncation": "disabled", "include": [], "reasoning": {"effort": "low"}, "tools": []}
    answer = http.post("/v1/responses", json={"model": "fake", "input": "x", **more})
    assert answer.status_code == 200, answer.text
    assert "x-nubes-warning" not in answer.headers
    assert prompt(engine)[0] == "[reasoning_effort=low]"


def test_a_failure_in_the_middle(http: httpx2.Client, client: Any, engine: FakeEngine) -> None:
    engine.fail = RuntimeError("secret")
    text = http.post("/v1/responses", json={"model": "fake", "input": "hello", "stream": True}).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    assert [event["type"] for event in events[-2:]] == ["response.failed", "error"]
    assert events[-2]["response"]["error"]["code"] == "server_error"
    assert "secret" not in text
    with pytest.raises(openai.APIError):
        list(client.responses.create(model="fake", input="hello", stream=True))
    engine.reset()
    engine.refuse = RuntimeError("at once")
    with pytest.raises(openai.InternalServerError):
        client.responses.create(model="fake", input="hello", stream=True)
