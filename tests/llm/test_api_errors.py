"""When things go wrong: errors in the form clients know, clients that leave, keys, quotas."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from llm.api_fakes import FakeEmbedder, FakeEngine, served, user
from nubes.kernel.errors import Overloaded, UsageError
from nubes.llm.api import Quota, app
from nubes.llm.api.completions import merged
from nubes.llm.api.quota import USERS, Quotas
from nubes.llm.errors import ContextTooLong
from nubes.llm.spec import Delta

openai = pytest.importorskip("openai", reason="the openai client is not installed")

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def there() -> Iterator[tuple[str, FakeEngine]]:
    engine = FakeEngine(context=200)
    with served(app({"fake": engine}, {"embed": FakeEmbedder()}, stall_s=5)) as url:
        yield url, engine


def within(seconds: float, check: Any) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if check():
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"), (b"{", "invalid_json"), (b"[1]", "invalid_json"), (b"\xff\xfe", "invalid_json"),
        (b"null", "invalid_json"), (b'{"model": "fake"} x', "invalid_json"), (b"[" * 100_000, "invalid_json"),
        (b'{"model": "fake", "messages": ' + b"[" * 100_000, "invalid_json"),
        (b'{"model": "fake", "messages": [{"role": "user", "content": "\xff"}]}', "invalid_json"),
        (b'{"model": "fake"}', "missing_required_parameter"), (b"{}", "missing_required_parameter"),
        (b'{"model": 7, "messages": [{"role": "user", "content": "x"}]}', "invalid_type"),
        (b'{"model": "fake", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "invalid_json"),
        (b'{"model": "fake", "messages": [{"role": "user", "content": "x"}], "temperature": 1e999}', "invalid_type"),
    ],
)  # fmt: skip
def test_bad_bodies(http: httpx2.Client, engine: FakeEngine, body: bytes, code: str) -> None:
    answer = http.post(CHAT, content=body)
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]["code"] == code
    assert engine.requests == []


def test_a_body_too_large(http: httpx2.Client, engine: FakeEngine) -> None:
    answer = http.post(CHAT, content=b" " * ((32 << 20) + 1))
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"


def test_unknown_models_are_listed(client: Any, engine: FakeEngine) -> None:
    engine.adapters = ["poet"]
    for ask in (
        lambda: client.chat.completions.create(model="gpt-9", messages=user("x")),
        lambda: client.completions.create(model="fake:nobody", prompt="x"),
        lambda: client.models.retrieve("gpt-9"),
    ):
        with pytest.raises(openai.NotFoundError) as told:
            ask()
        assert told.value.code == "model_not_found"
        assert told.value.param == "model"
        assert "fake, fake:poet, embed" in told.value.message
    with pytest.raises(openai.NotFoundError, match="There are: embed"):
        client.embeddings.create(model="gpt-9", input="x")
    with pytest.raises(openai.BadRequestError, match="generates text"):
        client.embeddings.create(model="fake", input="x")


def test_context_too_long_says_both_numbers(client: Any, engine: FakeEngine) -> None:
    for asked, said in (
        ({"messages": user("x" * 300)}, ["200", "320"]),
        ({"messages": user("x"), "max_tokens": 190}, ["200", "21", "190"]),
    ):
        with pytest.raises(openai.BadRequestError) as told:
            client.chat.completions.create(model="fake", stream=True, **asked)
        assert told.value.code == "context_length_exceeded"
        assert all(number in told.value.message for number in said), told.value.message
    with pytest.raises(openai.BadRequestError) as told:
        client.completions.create(model="fake", prompt="x" * 300)
    assert (told.value.code, told.value.param) == ("context_length_exceeded", "prompt")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("refusal", "kind", "code"),
    [
        (ContextTooLong("300 of 200."), "BadRequestError", "context_length_exceeded"),
        (UsageError("No such thing."), "BadRequestError", "invalid_value"),
        (Overloaded("64 requests wait."), "InternalServerError", "overloaded"),
        (RuntimeError("secret path /etc"), "InternalServerError", "engine_failed"),
    ],
)
def test_refusals_of_the_engine(
    client: Any, engine: FakeEngine, refusal: Exception, kind: str, code: str, stream: bool
) -> None:
    engine.refuse = refusal
    with pytest.raises(getattr(openai, kind)) as told:
        client.chat.completions.create(model="fake", messages=user("x"), stream=stream)
    assert told.value.code == code
    assert "secret" not in told.value.message
    if code == "overloaded":
        assert told.value.status_code == 503
        assert int(told.value.response.headers["retry-after"]) >= 1
    if code == "engine_failed":
        assert told.value.response.headers["x-request-id"] in told.value.message


@pytest.mark.parametrize(
    "failure",
    [RuntimeError("secret"), Delta(0, finish="error", error="Not numbers."), Delta(0, finish="abort"), "nothing"],
)
def test_failures_in_the_middle_of_a_stream(http: httpx2.Client, client: Any, engine: FakeEngine, failure: Any) -> None:
    engine.fail = Delta(0, tokens=[1]) if failure == "nothing" else failure  # "nothing": the deltas just end
    body = {"model": "fake", "messages": user("hello"), "stream": True}
    answer = http.post(CHAT, json=body)
    assert answer.status_code == 200
    events = [event for event in answer.text.split("\n\n") if event]
    assert events[-1] == "data: [DONE]"
    error = json.loads(events[-2].removeprefix("data: "))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "secret" not in error["message"]
    assert "".join(json.loads(e[6:])["choices"][0]["delta"].get("content", "") for e in events[:-2]) == "HEL"
    with pytest.raises(openai.APIError):
        list(client.chat.completions.create(**body))
    assert within(5, lambda: not engine.running)


def test_templates_may_refuse(client: Any, engine: FakeEngine) -> None:
    with pytest.raises(openai.BadRequestError, match="refuses it"):
        client.chat.completions.create(model="fake", messages=user("refuse me"))


def test_wrong_ways_in(http: httpx2.Client, engine: FakeEngine) -> None:
    answer = http.get(CHAT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    answer = http.post("/v1/chat", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert answer.headers["x-request-id"]


def test_request_ids_go_in_and_out(http: httpx2.Client, engine: FakeEngine) -> None:
    body = {"model": "fake", "messages": user("hi")}
    for more in ({}, {"stream": True}, {"temperature": "hot"}):
        answer = http.post(CHAT, json={**body, **more}, headers={"x-request-id": "mine-1"})
        assert answer.headers["x-request-id"] == "mine-1"
    made = {http.post(CHAT, json=body, headers={"x-request-id": "not one"}).headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2
    assert all(len(one) == 32 for one in made)


# -- clients that leave ---------------------------------------------------------------------------------------------


def raw(url: str, body: dict[str, Any], path: str = CHAT) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    sock = socket.create_connection((host, int(port)), timeout=10)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    sock.sendall(head.encode() + data)
    return sock


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("tokens", [0, 2])
def test_who_hangs_up_leaves_nothing_behind(there: Any, engine: FakeEngine, stream: bool, tokens: int) -> None:
    engine.hold_after = tokens
    sock = raw(there[0], {"model": "fake", "messages": user("hello"), "stream": stream})
    assert within(5, lambda: engine.running)
    if stream and tokens:
        said = b""
        while b"chat.completion.chunk" not in said:  # headers may come by themselves
            said += (more := sock.recv(65536))
            assert more, said
    assert not engine.left.is_set()
    sock.close()
    assert engine.left.wait(5)
    assert within(5, lambda: not engine.running)


def test_all_prompts_of_a_request_are_left(there: Any, engine: FakeEngine) -> None:
    engine.hold_after = 1
    sock = raw(there[0], {"model": "fake", "prompt": ["a", "b", "c"], "stream": True}, "/v1/completions")
    assert within(5, lambda: len(engine.running) == 3)
    sock.close()
    assert within(5, lambda: not engine.running)


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_other_endpoints_are_left_too(there: Any, engine: FakeEngine, path: str) -> None:
    engine.hold_after = 1
    body = {"model": "fake", "stream": True, "max_tokens": 9, "messages": user("hi"), "input": "hi"}
    sock = raw(there[0], body, path)
    assert within(5, lambda: engine.running)
    sock.close()
    assert within(5, lambda: not engine.running)


def test_a_client_out_of_patience(client: Any, engine: FakeEngine) -> None:
    engine.hold_after = 1
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model="fake", messages=user("hello"), timeout=0.3)
    assert within(5, lambda: not engine.running)


def test_a_client_that_reads_no_further(client: Any, engine: FakeEngine) -> None:
    engine.hold_after = 3
    with client.chat.completions.create(model="fake", messages=user("hello"), stream=True) as stream:
        next(iter(stream))
        assert engine.running
    assert within(5, lambda: not engine.running)


def scope(path: str, body: dict[str, Any], root: str = "") -> tuple[dict[str, Any], Any]:
    """A request as a server would hand it over, whose client stays."""
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()

    where = {"type": "http", "method": "POST", "path": path, "root_path": root, "query_string": b"", "headers": []}
    return {**where, "http_version": "1.1", "scheme": "http", "server": ("x", 80), "client": ("x", 1)}, receive


def test_a_server_that_cancels_the_app() -> None:
    engine = FakeEngine()
    engine.hold_after = 1

    async def run() -> None:
        asked, receive = scope(CHAT, {"model": "fake", "messages": user("hello"), "stream": True})
        chunks: asyncio.Queue[Any] = asyncio.Queue()
        task = asyncio.ensure_future(app({"fake": engine})(asked, receive, chunks.put))
        while b"delta" not in (await chunks.get()).get("body", b""):
            pass
        assert engine.running
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not engine.running

    asyncio.run(run())
    assert engine.left.is_set()


@pytest.mark.parametrize(("path", "key"), [(CHAT, "error"), ("/v1/messages", "type"), ("/v1/nowhere", "error")])
def test_below_another_path(path: str, key: str) -> None:
    async def run() -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        asked, receive = scope(
            "/mine/llm" + path, {"model": "other", "messages": user("x"), "max_tokens": 1}, "/mine/llm"
        )
        await app({"fake": FakeEngine()})(asked, receive, send)
        return sent

    start, body = asyncio.run(run())
    assert start["status"] == 404
    told = json.loads(body["body"])
    assert next(iter(told)) == key
    assert (b"x-request-id" in dict(start["headers"])) is True
    if path != "/v1/nowhere":
        assert "There are: fake." in told["error"]["message"]


def test_one_failing_stream_ends_the_others() -> None:
    closed = []

    async def stream(name: str) -> Any:
        try:
            yield name
            if name == "bad":
                raise ValueError("bad")
            await asyncio.Event().wait()
        finally:
            closed.append(name)

    async def run() -> list[tuple[int, str]]:
        seen = []
        with pytest.raises(ValueError, match="bad"):
            async for one in merged([stream("a"), stream("bad"), stream("c")]):
                seen.append(one)
        return seen

    assert sorted(asyncio.run(run())) == [(0, "a"), (1, "bad"), (2, "c")]
    assert sorted(closed) == ["a", "bad", "c"]


# -- keys and quotas ------------------------------------------------------------------------------------------------


def test_keys_say_who_it_is() -> None:
    engine = FakeEngine()
    with served(app({"fake": engine}, keys={"sk-1": "ann", "sk-2": "bob"})) as url:
        good = openai.OpenAI(base_url=url + "/v1", api_key="sk-2", max_retries=0)
        good.chat.completions.create(model="fake", messages=user("x"), user="ann")
        assert engine.requests[-1].user == "bob"  # the key says it, not the body
        with pytest.raises(openai.AuthenticationError) as told:
            openai.OpenAI(base_url=url + "/v1", api_key="sk-3", max_retries=0).models.list()
        assert told.value.code == "invalid_api_key"
        for headers in ({}, {"x-api-key": "wrong"}, {"authorization": "Basic sk-1"}, {"authorization": "Bearer"}):
            answer = httpx2.post(url + "/v1/messages", json={}, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["type"] == "authentication_error"
            assert answer.json()["type"] == "error"  # Anthropic's form
        assert httpx2.get(url + "/v1/models", headers={"x-api-key": "sk-1"}).status_code == 200
        assert httpx2.get(url + "/metrics").status_code == 401
        assert httpx2.get(url + "/health").status_code == 200


def test_quotas_are_told_and_kept() -> None:
    with served(app({"fake": FakeEngine()}, keys={"a": "ann", "b": "bob"}, quota=Quota(requests=2, tokens=600))) as url:
        client = openai.OpenAI(base_url=url + "/v1", api_key="a", max_retries=0)
        first = client.chat.completions.with_raw_response.create(model="fake", messages=user("x"))
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        second = client.chat.completions.with_raw_response.create(model="fake", messages=user("x"))
        spent = 600 - int(second.headers["x-ratelimit-remaining-tokens"])
        assert 0 < spent <= first.parse().usage.total_tokens
        with pytest.raises(openai.RateLimitError) as told:
            client.chat.completions.create(model="fake", messages=user("x"))
        assert told.value.code == "rate_limit_exceeded"
        assert 1 <= int(told.value.response.headers["retry-after"]) <= 30
        assert told.value.response.headers["x-ratelimit-remaining-requests"] == "0"
        other = openai.OpenAI(base_url=url + "/v1", api_key="b", max_retries=0)
        assert other.chat.completions.create(model="fake", messages=user("x"))


def test_buckets_fill_evenly() -> None:
    now = [0.0]
    quotas = Quotas(Quota(requests=60, tokens=600), clock=lambda: now[0])
    for _ in range(60):
        quotas.admit("ann")
    with pytest.raises(Exception, match="Come again in 1.0 s"):
        quotas.admit("ann")
    now[0] = 1.0
    assert quotas.admit("ann")["x-ratelimit-remaining-requests"] == "0"
    quotas.spend("bob", 1200)  # an answer may be longer than what was left
    with pytest.raises(Exception, match="600 tokens a minute"):
        quotas.admit("bob")
    now[0] += 60.0
    with pytest.raises(Exception, match="600 tokens a minute"):
        quotas.admit("bob")
    now[0] += 0.2
    assert quotas.admit("bob")["x-ratelimit-remaining-tokens"] in ("1", "2")
    for i in range(USERS + 5):
        quotas.admit(f"user {i}")
    assert len(quotas.users) == USERS
