"""/v1/chat/completions, through the official client and a real socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from llm.api_fakes import CALL, EOS, TOOL, FakeEngine, served, user
from nubes.llm.api import app
from nubes.llm.spec import Delta

openai = pytest.importorskip("openai", reason="the openai client is not installed")


@pytest.fixture(scope="module")
def there() -> Iterator[tuple[str, FakeEngine, FakeEngine]]:
    engine, bare = FakeEngine(adapters=["poet"]), FakeEngine("bare", tools=False)
    with served(app({"fake": engine, "bare": bare})) as url:
        yield url, engine, bare


@pytest.fixture
def bare(there: Any) -> FakeEngine:
    there[2].reset()
    return there[2]


def test_an_answer_and_what_it_cost(client: Any, engine: FakeEngine) -> None:
    answer = client.chat.completions.create(model="fake", messages=user("hello"))
    assert answer.choices[0].message.content == "HELLO"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    prompt = len(b"[user] hello\n[assistant] ")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, 6)
    assert answer.usage.total_tokens == prompt + 6
    assert answer.usage.prompt_tokens_details.cached_tokens == 5


@pytest.mark.parametrize("text", ["hello", "grüße 👋 𝄞", 'quotes " and \\ and\ttabs', "</script>\u2028"])
def test_a_stream_says_the_same(client: Any, engine: FakeEngine, text: str) -> None:
    engine.say = lambda _: text
    whole = client.chat.completions.create(model="fake", messages=user("?"))
    chunks = list(
        client.chat.completions.create(
            model="fake", messages=user("?"), stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks[:-1] if c.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_in_every_chunk(client: Any, engine: FakeEngine) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    for chunks in (
        list(client.chat.completions.create(model="fake", messages=user("hi"), stream=True, stream_options=options))[
            1:
        ],
        list(client.completions.create(model="fake", prompt="hi", stream=True, stream_options=options)),
    ):
        counts = [chunk.usage.completion_tokens for chunk in chunks]
        assert counts == sorted(counts)
        assert (counts[0], counts[-1]) == (1, 3)


def test_several_choices(client: Any, engine: FakeEngine) -> None:
    answer = client.chat.completions.create(model="fake", messages=user("a"), n=3)
    assert [(c.index, c.message.content) for c in answer.choices] == [(0, "A"), (1, "A"), (2, "A")]
    assert answer.usage.completion_tokens == 6
    texts = {0: "", 1: ""}
    for chunk in client.chat.completions.create(model="fake", messages=user("bc"), n=2, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: "BC", 1: "BC"}


def test_log_probabilities(client: Any, engine: FakeEngine) -> None:
    asked: dict[str, Any] = {"model": "fake", "messages": user("hi"), "logprobs": True, "top_logprobs": 2}
    answer = client.chat.completions.create(**asked)
    found = answer.choices[0].logprobs.content
    assert [one.token for one in found] == ["H", "I", ""]
    assert found[0].logprob == -0.5
    assert found[0].bytes == [72]
    assert [(t.token, t.logprob) for t in found[0].top_logprobs] == [("H", -0.5), (" ", -9999.0)]  # JSON has no -inf
    streamed = [
        one
        for chunk in client.chat.completions.create(**asked, stream=True)
        for one in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])
    ]
    assert streamed == found


def test_stop_strings_and_limits(client: Any, engine: FakeEngine) -> None:
    engine.say = lambda _: "one two three"
    for asked, text, finish in (
        ({"stop": " tw"}, "one", "stop"),
        ({"stop": ["x", "three"]}, "one two ", "stop"),
        ({"stop": " tw", "extra_body": {"include_stop_str_in_output": True}}, "one tw", "stop"),
        ({"max_tokens": 3}, "one", "length"),
        ({"max_tokens": 1, "max_completion_tokens": 5}, "one t", "length"),
    ):
        answer = client.chat.completions.create(model="fake", messages=user("?"), **asked)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (text, finish)
    chunks = client.chat.completions.create(model="fake", messages=user("?"), stop="three", stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "one two "


def test_every_field_reaches_the_engine(http: httpx2.Client, engine: FakeEngine) -> None:
    body = {
        "model": "fake:poet", "messages": user("?"), "temperature": 0, "top_p": 0.5, "top_k": -1, "min_p": 0.1,
        "presence_penalty": 1, "frequency_penalty": -1, "repetition_penalty": 1.1, "logit_bias": {"65": -100},
        "seed": -7, "stop": ["a", "b"], "stop_token_ids": [3], "include_stop_str_in_output": True, "ignore_eos": True,
        "min_tokens": 2, "max_completion_tokens": 9, "logprobs": True, "top_logprobs": 4, "n": 2, "user": "ann",
        "priority": 3, "session_id": "s", "cache_salt": "salt", "metadata": {"a": "b"}, "service_tier": "flex",
        "parallel_tool_calls": True, "reasoning_effort": "low", "chat_template_kwargs": {"mood": "gay"},
    }  # fmt: skip
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert "x-nubes-warning" not in answer.headers
    assert answer.json()["service_tier"] == "flex"
    assert answer.json()["model"] == "fake:poet"
    request = engine.requests[-1]
    how = request.sampling
    assert bytes(request.prompt).decode().startswith("[mood=gay]\n[reasoning_effort=low]\n[user] ?")
    assert (request.n, request.adapter, request.user, request.priority) == (2, "poet", "ann", 3)
    assert (request.session, request.cache_salt) == ("s", "salt")
    assert (how.temperature, how.top_p, how.top_k, how.min_p) == (0, 0.5, 0, 0.1)
    assert (how.presence_penalty, how.frequency_penalty, how.repetition_penalty) == (1, -1, 1.1)
    assert (how.logit_bias, how.stop, how.stop_token_ids) == ({65: -100}, ("a", "b"), (3,))
    assert (how.include_stop, how.ignore_eos, how.min_tokens, how.max_tokens, how.logprobs) == (True, True, 2, 9, 4)
    assert how.seed is not None
    assert how.seed >= 0


def test_nothing_given_changes_nothing(client: Any, engine: FakeEngine) -> None:
    client.chat.completions.create(model="poet", messages=user("?"))
    request = engine.requests[-1]
    assert request.adapter == "poet"
    assert request.sampling == type(request.sampling)()
    client.chat.completions.create(model="fake", messages=user("?"), service_tier="priority")
    assert engine.requests[-1].priority == -1
    assert len({r.id for r in engine.requests}) == 2


def test_messages_become_text(client: Any, engine: FakeEngine) -> None:
    messages: list[Any] = [
        {"role": "developer", "content": "short"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ]  # fmt: skip
    client.chat.completions.create(model="fake", messages=messages, tools=[TOOL])
    assert bytes(engine.requests[-1].prompt).decode().splitlines() == [
        "[tool] weather", "[system] short", "[user] ab", "[assistant] ",
        "[call] {'name': 'weather', 'arguments': {'city': 'Ulm'}}", "[tool] rain", "[assistant] ",
    ]  # fmt: skip


def test_a_template_without_tools_gets_them_as_text(client: Any, bare: FakeEngine) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "short"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ]  # fmt: skip
    client.chat.completions.create(model="bare", messages=messages, tools=[TOOL])
    prompt = bytes(bare.requests[-1].prompt).decode()
    assert prompt.startswith("[system] short\n\nYou may call functions")
    assert json.dumps(TOOL) in prompt
    assert f"[assistant] {CALL}\n[user] <tool_response>\nrain\n</tool_response>\n[assistant] " in prompt


def test_the_last_message_can_be_continued(client: Any, engine: FakeEngine) -> None:
    engine.say = lambda _: " a time"
    messages = [*user("tell"), {"role": "assistant", "content": "Once upon "}]
    answer = client.chat.completions.create(
        model="fake", messages=messages, extra_body={"continue_final_message": True, "add_generation_prompt": False}
    )
    assert bytes(engine.requests[-1].prompt).decode() == "[user] tell\n[assistant] Once upon"
    assert answer.choices[0].message.content == " a time"


def test_token_ids_on_request(http: httpx2.Client, engine: FakeEngine) -> None:
    body = {"model": "fake", "messages": user("hi"), "return_token_ids": True}
    answer = http.post("/v1/chat/completions", json=body).json()
    assert answer["prompt_token_ids"] == list(b"[user] hi\n[assistant] ")
    assert answer["choices"][0]["token_ids"] == [*b"HI", EOS]
    events = http.post("/v1/chat/completions", json={**body, "stream": True}).text.split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events if event.startswith("data: {")]
    assert chunks[0]["prompt_token_ids"] == answer["prompt_token_ids"]
    assert [t for chunk in chunks for t in chunk["choices"][0].get("token_ids", [])] == [*b"HI", EOS]


@pytest.mark.parametrize(
    ("shape", "check"),
    [
        ({"response_format": {"type": "json_object"}}, lambda text: isinstance(json.loads(text), dict)),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": {
                "type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
                "required": ["a", "b"], "additionalProperties": False}}}},
            lambda text: set(json.loads(text)) == {"a", "b"} and json.loads(text)["b"] in "xy",
        ),
        ({"extra_body": {"guided_choice": ["yes", "no"]}}, lambda text: text in ("yes", "no")),
        ({"extra_body": {"guided_regex": "[0-9]{4}"}}, lambda text: len(text) == 4 and text.isdigit()),
        ({"extra_body": {"guided_json": {"type": "boolean"}}}, lambda text: isinstance(json.loads(text), bool)),
        ({"extra_body": {"structured_outputs": {"choice": ["maybe"]}}}, lambda text: text == "maybe"),
        ({"extra_body": {"structured_outputs": {"grammar": 'start: "a" | "b"'}}}, lambda text: text in ("a", "b")),
        ({"extra_body": {"structured_outputs": {"grammar": 'root ::= "a" | "b"'}}}, lambda text: text in ("a", "b")),
    ],
)  # fmt: skip
def test_the_output_has_the_shape_asked_for(client: Any, engine: FakeEngine, shape: Any, check: Any) -> None:
    pytest.importorskip("llguidance", reason="structured output needs llguidance")
    answer = client.chat.completions.create(model="fake", messages=user("anything at all"), max_tokens=200, **shape)
    assert answer.choices[0].finish_reason == "stop"
    assert check(answer.choices[0].message.content), answer.choices[0].message.content


def test_tools_are_called(client: Any, engine: FakeEngine) -> None:
    engine.say = lambda _: "Let me see.\n" + CALL + "\n" + CALL.replace("Ulm", "Bonn")
    answer = client.chat.completions.create(model="fake", messages=user("?"), tools=[TOOL])
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert message.content == "Let me see.\n"
    assert [json.loads(call.function.arguments) for call in message.tool_calls] == [{"city": "Ulm"}, {"city": "Bonn"}]
    assert len({call.id for call in message.tool_calls}) == 2
    with client.chat.completions.stream(model="fake", messages=user("?"), tools=[TOOL]) as stream:
        seen = [event.type for event in stream]
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert final.message.content == "Let me see.\n"
    assert [call.function.arguments for call in final.message.tool_calls] == ['{"city": "Ulm"}', '{"city": "Bonn"}']
    assert seen.count("tool_calls.function.arguments.delta") > 4  # they come as they are written


def test_one_call_at_a_time(client: Any, engine: FakeEngine) -> None:
    engine.say = lambda _: CALL + "\n" + CALL
    answer = client.chat.completions.create(model="fake", messages=user("?"), tools=[TOOL], parallel_tool_calls=False)
    assert len(answer.choices[0].message.tool_calls) == 1
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].stop_reason is None
    assert engine.left.is_set() is False


def test_tools_can_be_forbidden_and_forced(client: Any, engine: FakeEngine) -> None:
    other = {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}}
    engine.say = lambda _: CALL
    answer = client.chat.completions.create(model="fake", messages=user("?"), tools=[TOOL], tool_choice="none")
    assert answer.choices[0].message.content == CALL
    assert "[tool]" not in bytes(engine.requests[-1].prompt).decode()
    pytest.importorskip("llguidance", reason="forced calls need llguidance")
    engine.say = lambda _: "I would rather not."
    for choice, names in (
        ("required", {"weather", "time"}),
        ({"type": "function", "function": {"name": "time"}}, {"time"}),
    ):
        answer = client.chat.completions.create(
            model="fake", messages=user("?"), tools=[TOOL, other], tool_choice=choice, max_tokens=300
        )
        assert answer.choices[0].message.content is None
        assert {call.function.name for call in answer.choices[0].message.tool_calls} <= names
        for call in answer.choices[0].message.tool_calls:
            assert isinstance(json.loads(call.function.arguments), dict)


def test_a_call_or_json(client: Any, engine: FakeEngine) -> None:
    pytest.importorskip("llguidance", reason="structured output needs llguidance")
    shape = {
        "type": "json_schema",
        "json_schema": {
            "name": "n",
            "schema": {
                "type": "object",
                "properties": {"a": {"type": "integer"}},
                "required": ["a"],
                "additionalProperties": False,
            },
        },
    }
    for said, content in ((CALL, None), ('{"a": 1}', '{"a": 1}')):
        engine.say = lambda _, said=said: said
        answer = client.chat.completions.create(
            model="fake", messages=user("?"), tools=[TOOL], response_format=shape, max_tokens=100
        )
        assert answer.choices[0].message.content == content
        assert bool(answer.choices[0].message.tool_calls) == (content is None)


def test_parsed_by_the_client(client: Any, engine: FakeEngine) -> None:
    pydantic = pytest.importorskip("pydantic")
    pytest.importorskip("llguidance", reason="structured output needs llguidance")
    City = pydantic.create_model("City", name=(str, ...), people=(int, ...))
    engine.say = lambda _: '{"name": "Ulm", "people": 128928}'
    answer = client.chat.completions.parse(model="fake", messages=user("?"), response_format=City)
    assert answer.choices[0].message.parsed == City(name="Ulm", people=128928)


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("functions", [{"name": "f"}], "functions"), ("function_call", "auto", "function_call"),
        ("audio", {"voice": "x"}, "audio"), ("modalities", ["text", "audio"], "modalities"),
        ("prediction", {"type": "content", "content": "x"}, "prediction"), ("web_search_options", {"a": 1}, "web_search_options"),
        ("store", True, "store"), ("kv_transfer_params", {"a": 1}, "kv_transfer_params"),
        ("prompt_logprobs", 21, "prompt_logprobs"), ("use_beam_search", True, "use_beam_search"),
        ("stream_options", {"include_usage": True}, "stream_options"), ("top_logprobs", 3, "top_logprobs"),
        ("temperature", "hot", "temperature"), ("temperature", 3, "temperature"), ("temperature", -0.1, "temperature"),
        ("top_p", 0, "top_p"), ("n", 0, "n"), ("n", 1.5, "n"), ("max_tokens", 0, "max_tokens"), ("max_tokens", True, "max_tokens"),
        ("stop", [1], "stop[...]"), ("stop", [""], "stop[...]"), ("logit_bias", {"x": 1}, "logit_bias"), ("logit_bias", {"9999": 1}, "logit_bias"),
        ("logit_bias", {"1": 101}, "logit_bias[...]"), ("stop_token_ids", [9999], "stop_token_ids"), ("presence_penalty", 2.1, "presence_penalty"),
        ("messages", [], "messages"), ("messages", "hi", "messages"), ("messages", [{"content": "x"}], "messages[0].role"),
        ("messages", [{"role": "wizard", "content": "x"}], "messages[0].role"), ("messages", [{"role": "tool", "content": "x"}], "messages[0].tool_call_id"),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "messages[0].content[0].type"),
        ("messages", [{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0].type"),
        ("tools", [{"type": "custom"}], "tools[0].type"), ("tools", [TOOL, TOOL], "tools[1].function.name"),
        ("tool_choice", "required", "tool_choice"), ("tool_choice", {"type": "function", "function": {"name": "f"}}, "tool_choice"),
        ("response_format", {"type": "json_schema"}, "response_format.json_schema"), ("response_format", {"type": "yaml"}, "response_format.type"),
        ("min_tokens", 10**6, None), ("priority", "high", "priority"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said(
    http: httpx2.Client, engine: FakeEngine, field: str, value: Any, param: Any
) -> None:
    body = {"model": "fake", "messages": user("hi"), field: value}
    if field == "min_tokens":
        body["max_tokens"], param = 5, "min_tokens"
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert str(error["param"]).replace("[0]", "[...]") == str(param).replace("[0]", "[...]")
    assert engine.requests == []


@pytest.mark.parametrize(
    "harmless",
    [
        {"modalities": ["text"]}, {"audio": None}, {"store": False}, {"functions": []}, {"verbosity": "medium"},
        {"temperature": None, "n": None, "stop": None, "tools": None}, {"tools": []}, {"response_format": {"type": "text"}},
        {"prompt_cache_key": "k", "safety_identifier": "bob"},
    ],
)  # fmt: skip
def test_what_asks_for_nothing_special_is_fine(http: httpx2.Client, engine: FakeEngine, harmless: Any) -> None:
    answer = http.post("/v1/chat/completions", json={"model": "fake", "messages": user("hi"), **harmless})
    assert answer.status_code == 200, answer.text
    assert "x-nubes-warning" not in answer.headers


def test_unknown_fields_are_warned_of(http: httpx2.Client, engine: FakeEngine, caplog: Any) -> None:
    body = {"model": "fake", "messages": user("hi"), "frobnicate": 1, "bad\r\nname: ä": 2}
    for _ in range(2):
        answer = http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200
        assert answer.headers["x-nubes-warning"] == "unknown fields were passed over: frobnicate, bad??name: ?"
    assert sum("frobnicate" in record.message for record in caplog.records) == 1  # once, in the log


def test_a_failing_choice_fails_all(client: Any, engine: FakeEngine) -> None:
    engine.fail = Delta(0, finish="error", error="The logits are not numbers.")
    with pytest.raises(openai.InternalServerError, match="not numbers"):
        client.chat.completions.create(model="fake", messages=user("hello"), n=2)
