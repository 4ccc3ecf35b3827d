"""Programs of several calls over HTTP."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from llm.api_fakes import FakeEngine, served
from llm.graph_functions import join, shorten
from nubes.kernel.errors import Unavailable, UsageError
from nubes.llm.api import app
from nubes.llm.graphs import Session, json_field
from nubes.llm.graphs.program import SemanticFunction
from nubes.llm.graphs.transforms import TransformFailed


def test_a_graph_goes_over_http_in_one_request() -> None:
    made: Any = FakeEngine()
    made.say = lambda request: bytes(t for t in request.prompt if t < 256).decode().upper()[-6:]

    async def run(url: str) -> None:
        async with Session(url=url, model="fake"):
            both = join(shorten("cat"), shorten("dog"))
            assert await both.get() == "RTER::"
            bad = SemanticFunction("a:{{output:x}}", {"x": [json_field("a")]}, max_tokens=3)()
            with pytest.raises(TransformFailed, match="no JSON object"):
                await bad.get()
            parts = [part async for part in shorten("cow").stream()]
            assert len(parts) > 1
        async with Session(url=url, model="other"):
            with pytest.raises(UsageError, match="no model 'other'"):
                await shorten("cat").get()

    with served(app({"fake": made})) as url:
        asyncio.run(run(url))
    first, second, last = made.requests[:3]
    assert first.work is not None
    assert last.work is not None
    assert first.work.group == second.work.group != ""
    assert (first.work.criterion, last.work.criterion, last.work.depth) == ("throughput", "latency", 2)


def test_a_session_that_ends_stops_what_the_service_does_for_it() -> None:
    made: Any = FakeEngine()
    made.hold_after = 2

    async def run(url: str) -> None:
        async with Session(url=url, model="fake"):
            parts = shorten("a long story").stream()
            assert await anext(parts)
            assert made.running
            waiting = asyncio.ensure_future(shorten("another").get())
            await asyncio.sleep(0.2)
        with pytest.raises(Unavailable, match="session was closed"):
            await waiting
        await parts.aclose()  # type: ignore[attr-defined]

    with served(app({"fake": made})) as url:
        asyncio.run(run(url))
        assert made.left.wait(5)
        for _ in range(100):
            if not made.running:
                break
            time.sleep(0.05)
        assert not made.running


def test_a_service_that_is_not_there() -> None:
    async def run() -> None:
        async with Session(url="http://127.0.0.1:9", model="fake"):
            with pytest.raises(Unavailable, match="does not answer"):
                await shorten("a").get()

    asyncio.run(run())


def test_the_whole_answer_and_its_usage() -> None:
    httpx2 = pytest.importorskip("httpx2")
    made: Any = FakeEngine()
    body = {
        "model": "fake", "calls": [{"template": "ab{{input:x}}{{output:y}}", "max_tokens": 9}], "values": {"x": "c"},
        "get": {"y": "latency"},
    }  # fmt: skip
    with served(app({"fake": made})) as url:
        answer = httpx2.post(url + "/v1/graphs", json=body).json()
        assert answer["values"] == {"y": {"text": "ABC", "finish_reason": "stop"}}
        assert answer["usage"]["prompt_tokens"] == 3
        body["get"] = {"z": "latency"}
        refused = httpx2.post(url + "/v1/graphs", json=body)
        assert refused.status_code == 400
        assert "Nothing gives 'z'" in refused.json()["error"]["message"]
        endless = {**body["calls"][0], "transforms": {"y": [{"kind": "regex", "argument": "(A|A)*$"}]}}
        body |= {"calls": [endless], "get": {"y": "latency"}, "values": {"x": "a" * 90 + "b"}}
        endless["max_tokens"] = 99
        stopped = httpx2.post(url + "/v1/graphs", json=body)
        assert stopped.status_code == 400
        assert "takes more than" in stopped.json()["error"]["message"]
