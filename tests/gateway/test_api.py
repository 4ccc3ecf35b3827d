"""The API under /v1, over real HTTP."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.running import Up

INVOKE = "/v1/functions/web/{}/invoke"


def sample(client: httpx2.Client, line: str) -> float:
    """The value of one line of /metrics; 0 if it is not there."""
    found = [row for row in client.get("/metrics").text.splitlines() if row.startswith(line + " ")]
    return float(found[0].split()[-1]) if found else 0.0


def within(seconds: float, check: Any) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if check():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("function", "body", "result"),
    [
        ("echo", None, [[], {}]),
        ("echo", {"args": [1, "b"], "kwargs": {"c": None}}, [[1, "b"], {"c": None}]),
        ("echo", {"args": [1]}, [[1], {}]),
        ("echo", {"a": 1, "b": [2]}, [[], {"a": 1, "b": [2]}]),
        ("echo", [1, 2], [[1, 2], {}]),
        ("echo", "text", [["text"], {}]),
        ("echo", {}, [[], {}]),
        ("product", {"a": 3}, 6.0),
        ("array", {"n": 3}, {"x": [0, 1, 2], "m": 1.5, "nan": None}),
        ("zeros", 20_000, [0.0] * 20_000),
        ("Counter.up", {"kwargs": {"by": 2}, "parameters": {"start": 40}}, 42),
        ("Counter.show", None, {"n": 0, "x": 0}),
    ],
)
def test_invoke_takes_json_and_answers_json(client: httpx2.Client, function: str, body: Any, result: Any) -> None:
    answer = client.post(INVOKE.format(function), content=b"" if body is None else json.dumps(body))
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert said["call_id"].startswith("fc-")
    assert (said["status"], said["result"]) == ("SUCCEEDED", result)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "param"),
    [
        ("POST", INVOKE.format("nope"), "", 404, "not_found", "function"),
        ("POST", "/v1/functions/none/echo/invoke", "", 404, "not_found", "function"),
        ("POST", INVOKE.format("Counter"), "", 404, "not_found", "function"),
        ("POST", INVOKE.format("site"), "", 400, "is_web_app", "function"),
        ("POST", INVOKE.format("count"), "[1]", 400, "is_generator", None),
        ("POST", "/v1/functions/web/count/spawn", "[1]", 400, "is_generator", None),
        ("POST", INVOKE.format("echo"), "{x", 400, "not_json", "body"),
        ("POST", INVOKE.format("echo"), '{"args": 3}', 400, "invalid_type", "args"),
        ("POST", INVOKE.format("echo"), '{"kwargs": []}', 400, "invalid_type", "kwargs"),
        ("POST", INVOKE.format("slow"), "", 400, "missing_parameter", "seconds"),
        ("POST", INVOKE.format("slow"), '{"sconds": 1}', 400, "unknown_parameter", "sconds"),
        ("POST", INVOKE.format("slow"), "[1, 2]", 400, "too_many_arguments", "args"),
        ("POST", INVOKE.format("slow"), '{"args": [1], "kwargs": {"seconds": 1}}', 400, "given_twice", "seconds"),
        (
            "POST",
            INVOKE.format("slow"),
            '{"args": [1], "parameters": {"a": 1}}',
            400,
            "unknown_parameter",
            "parameters",
        ),
        ("POST", INVOKE.format("slow") + "?timeout=soon", "1", 400, "invalid_value", "timeout"),
        ("POST", INVOKE.format("slow") + "?timeout=0.2", "20", 504, "timed_out", "timeout"),
        ("POST", INVOKE.format("late"), "", 504, "timed_out", None),
        ("POST", INVOKE.format("bad"), "", 500, "ValueError", None),
        ("POST", INVOKE.format("die"), "", 500, "instance_died", None),
        ("POST", INVOKE.format("point"), "", 422, "result_not_json", None),
        ("GET", INVOKE.format("echo"), "", 405, "method_not_allowed", None),
        ("GET", "/v1/calls/fc-7zz", "", 404, "not_found", "id"),
        ("DELETE", "/v1/calls/fc-7zz", "", 404, "not_found", "id"),
        ("GET", "/v1/calls/no!", "", 400, "invalid_id", "id"),
        ("GET", "/v1/nothing", "", 404, "not_found", None),
    ],
)
def test_errors_say_what_is_wrong(
    client: httpx2.Client, method: str, path: str, body: str, status: int, code: str, param: str | None
) -> None:
    answer = client.request(method, path, content=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"].endswith((".", ":")) or code == "ValueError"


def test_a_404_names_what_exists_and_a_failure_shows_its_traceback(client: httpx2.Client) -> None:
    assert "web/echo" in client.post(INVOKE.format("nope")).json()["error"]["message"]
    error = client.post(INVOKE.format("bad")).json()["error"]
    assert error["message"] == "ValueError: no good"
    assert 'raise ValueError("no good")' in error["traceback"]


@pytest.mark.parametrize("path", ["/v1/functions", "/metrics", "/openapi.json", INVOKE.format("echo"), "/web/product"])
@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": "Basic eDp5"}])
def test_without_the_token_nothing_is_told(up: Up, path: str, headers: dict[str, str]) -> None:
    with up.client(token=False) as client:
        answer = client.request("POST" if "invoke" in path or "product" in path else "GET", path, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_token"
    assert answer.headers["www-authenticate"] == "Bearer"


def test_spawn_then_poll(client: httpx2.Client) -> None:
    spawned = client.post("/v1/functions/web/slow/spawn", json=0.5)
    assert spawned.status_code == 202
    where = spawned.headers["location"]
    assert where == f"/v1/calls/{spawned.json()['call_id']}"
    early = client.get(where)
    assert (early.status_code, early.json()["status"]) in [(202, "PENDING"), (202, "RUNNING")]
    assert "retry-after" in early.headers
    assert client.get(where + "?timeout=20").json()["result"] == 0.5
    assert client.get(where).json()["status"] == "SUCCEEDED"  # for as long as it is kept


def test_a_failed_call_is_told_by_a_poll_that_went_well(client: httpx2.Client) -> None:
    id = client.post("/v1/functions/web/bad/spawn").json()["call_id"]
    answer = client.get(f"/v1/calls/{id}?timeout=20s")
    assert answer.status_code == 200
    said = answer.json()
    assert (said["status"], said["error"]["code"]) == ("FAILED", "ValueError")


def test_cancel(client: httpx2.Client) -> None:
    id = client.post("/v1/functions/web/slow/spawn", json=60).json()["call_id"]
    assert client.delete(f"/v1/calls/{id}").json() == {"call_id": id, "status": "CANCELLED"}
    assert client.get(f"/v1/calls/{id}?timeout=5").json()["status"] == "CANCELLED"


def test_one_idempotency_key_runs_once(client: httpx2.Client, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    headers = {"idempotency-key": f"key-{tmp_path}"}
    body = {"path": str(mark)}
    spawned = client.post("/v1/functions/web/stamp/spawn", json=body, headers=headers).json()["call_id"]
    assert client.post("/v1/functions/web/stamp/spawn", json=body, headers=headers).json()["call_id"] == spawned
    again = client.post(INVOKE.format("stamp"), json=body, headers=headers).json()
    assert (again["call_id"], again["result"]) == (spawned, "done")
    assert client.post(INVOKE.format("stamp"), json=body, headers=headers).json()["call_id"] == spawned
    assert mark.read_text() == "x"


def test_a_stream_comes_as_it_is_made(client: httpx2.Client) -> None:
    with client.stream("POST", "/v1/functions/web/count/stream", json={"n": 3, "pause": 0.2}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        seen = [(time.monotonic(), line) for line in answer.iter_lines() if line]
    assert [line for _, line in seen] == ['data: {"i":0}', 'data: {"i":1}', 'data: {"i":2}', "data: [DONE]"]
    assert seen[2][0] - seen[0][0] > 0.3  # two pauses lay between the first and the last


def test_a_stream_of_one_and_a_stream_that_breaks(client: httpx2.Client) -> None:
    one = client.post("/v1/functions/web/echo/stream", json=[1]).text
    assert one == "data: [[1],{}]\n\ndata: [DONE]\n\n"
    lines = client.post("/v1/functions/web/breaks/stream", json=2).text.split("\n\n")
    assert lines[:2] == ["data: 0", "data: 1"]
    assert json.loads(lines[2].removeprefix("data: "))["error"]["code"] == "ValueError"


@pytest.mark.parametrize("path", [INVOKE.format("slow"), "/v1/functions/web/count/stream"])
def test_who_hangs_up_cancels_the_call(up: Up, client: httpx2.Client, path: str) -> None:
    function = path.split("/")[4]
    line = f'nubes_calls_total{{function="web/{function}",status="CANCELLED"}}'
    before = sample(client, line)
    body = 60 if function == "slow" else {"n": 1000, "pause": 0.05}
    with (
        up.client() as leaving,
        leaving.stream("POST", path, json=body) if function == "count" else _leave(leaving, path, body),
    ):
        pass
    assert within(10, lambda: sample(client, line) == before + 1)


def _leave(client: httpx2.Client, path: str, body: Any) -> Any:
    import contextlib

    with contextlib.suppress(httpx2.ReadTimeout):
        client.post(path, json=body, timeout=0.5)
    return contextlib.nullcontext()


def test_a_full_queue_pushes_back(client: httpx2.Client) -> None:
    spawn = "/v1/functions/web/narrow/spawn"
    runs = client.post(spawn, json=20).json()["call_id"]
    assert within(20, lambda: client.get(f"/v1/calls/{runs}").json()["status"] == "RUNNING")
    waits = client.post(spawn, json=20).json()["call_id"]
    for path in (INVOKE.format("narrow"), spawn, "/v1/functions/web/narrow/stream"):
        refused = client.post(path, json=1)
        assert refused.status_code == 429, refused.text
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "queue_full"
    for id in (waits, runs):
        client.delete(f"/v1/calls/{id}")
