"""Web endpoints of users: functions, methods, ASGI apps and WebSockets."""

from __future__ import annotations

import time
from typing import Any

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from gateway.running import Up


@pytest.mark.parametrize(
    ("path", "status", "answer"),
    [
        ("/web/hi?name=bo&times=2", 200, {"hello": "bobo", "tags": []}),
        ("/web/hi?name=7&tags=a&tags=b&utm=x", 200, {"hello": "7", "tags": ["a", "b"]}),
        ("/web/hi", 400, "name"),
        ("/web/hi?name=x&times=many", 400, "times"),
        ("/web/Counter.show?x=4", 200, {"n": 0, "x": 4}),
        ("/web/Counter.up", 404, None),
        ("/web/echo", 404, None),
        ("/web/hi/deeper", 404, None),
        ("/nothing", 404, None),
    ],
)
def test_query_strings_become_arguments_of_the_right_type(up: Up, path: str, status: int, answer: Any) -> None:
    with up.client(token=False) as client:
        got = client.get(path)
    assert got.status_code == status, got.text
    assert (got.json() if status == 200 else got.json()["error"]["param"]) == answer


def test_a_404_names_the_endpoints(up: Up) -> None:
    with up.client(token=False) as client:
        assert "/web/hi" in client.get("/web/nothing").json()["error"]["message"]


def test_bodies_and_methods(client: httpx2.Client) -> None:
    assert client.post("/web/product", json={"a": 4}).json() == 8.0
    assert client.post("/web/product", json=5).json() == 10.0
    wrong = client.get("/web/product")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


def test_an_asgi_app_sees_the_whole_request(up: Up) -> None:
    with up.client(token=False) as client:
        home = client.get("/web/site/?a=1").json()
        assert home == {"url": "/web/site/", "root": "/web/site", "begun": 7, "q": {"a": "1"}}
        sized = client.post("/web/site/size", content=b"x" * 300_000, headers={"x-mine": "yes"})
        assert (sized.text, sized.headers["x-seen"]) == ("300000", "yes")
        assert client.get("/web/site/nothing").status_code == 404
        assert client.get("/web/site/boom").status_code == 500
        assert client.get("/web/site", follow_redirects=True).json()["url"] == "/web/site/"
        assert client.get("/web/Site.pages/x").text == "class"


def test_an_asgi_app_streams(up: Up) -> None:
    with up.client(token=False) as client, client.stream("GET", "/web/site/stream") as answer:
        seen = [(time.monotonic(), line) for line in answer.iter_lines()]
    assert [line.split()[0] for _, line in seen] == ["0", "1", "2"]
    assert seen[2][0] - seen[0][0] > 0.3


def test_requests_share_instances_and_kill_none(up: Up, client: httpx2.Client) -> None:
    """An answer that is complete is no client that left: the instance lives on."""
    with up.client(token=False) as plain:
        for _ in range(20):
            assert plain.get("/web/site/").status_code == 200
    text = client.get("/metrics").text
    assert 'nubes_calls_total{function="web/site",status="CANCELLED"}' not in text
    starts = [
        line
        for line in text.splitlines()
        if line.startswith('nubes_call_starts_total{function="web/site",kind="warm"}')
    ]
    assert float(starts[0].split()[-1]) >= 20


def test_websockets(up: Up) -> None:
    where = up.url.replace("http", "ws") + "/web/site/talk"
    with connect(where) as socket:
        for word in ("a", "b"):
            socket.send(word)
            assert socket.recv(timeout=10) == f"echo {word}"
        socket.send("bye")
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4001


@pytest.mark.parametrize("path", ["/web/site/none", "/web/hi", "/web/nothing", "/web/Site.pages"])
def test_websockets_that_nobody_takes_are_refused(up: Up, path: str) -> None:
    with pytest.raises((InvalidStatus, ConnectionClosed)), connect(up.url.replace("http", "ws") + path) as socket:
        socket.recv(timeout=10)
