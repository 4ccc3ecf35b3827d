"""Sends graphs to a service's /v1/graphs: one request for all calls, events back for each variable."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import msgspec

from nubes.kernel.errors import NubesError, Unavailable, UsageError
from nubes.llm.graphs.runner import Event, Failed, Said, Value
from nubes.llm.graphs.spec import Graph
from nubes.llm.graphs.transforms import TransformFailed


class Remote:
    """A model behind HTTP. `url`: of the gateway, without a path or with that of the deployment."""

    def __init__(self, url: str, model: str = "", token: str = "") -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url!r} is no URL of a service.", "Write http://HOST:PORT.")
        self._parts = parts
        self.model = model
        self.token = token

    async def run(self, graph: Graph) -> AsyncGenerator[Event, None]:
        """Events as they come. Raises `UsageError` or `Unavailable` for what the service refuses."""
        loop = asyncio.get_running_loop()
        lines: asyncio.Queue[dict[str, Any] | Exception | None] = asyncio.Queue()
        connection = self._connection()
        line: list[Any] = []  # the socket, which the connection may let go of
        left = threading.Event()

        def read() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                follow()

        def follow() -> None:
            try:
                connection.connect()
                line.append(connection.sock)
                for event in self._events(connection, graph) if not left.is_set() else ():
                    loop.call_soon_threadsafe(lines.put_nowait, event)
                loop.call_soon_threadsafe(lines.put_nowait, None)
            except (OSError, http.client.HTTPException, ValueError) as error:
                gone = Unavailable(f"The service at {self._parts.netloc} does not answer: {error}.", "Is it running?")
                loop.call_soon_threadsafe(lines.put_nowait, gone)
            except NubesError as error:
                loop.call_soon_threadsafe(lines.put_nowait, error)
            finally:
                connection.close()

        threading.Thread(target=read, name="nubes-graph", daemon=True).start()
        try:
            while (event := await lines.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                told = _event(event)
                if told is not None:
                    yield told
        finally:
            left.set()
            for sock in line:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)  # wakes the thread, and tells the service

    def _connection(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        return kind(self._parts.hostname or "", self._parts.port)

    def _events(self, connection: http.client.HTTPConnection, graph: Graph) -> Iterator[dict[str, Any]]:
        headers = {"content-type": "application/json"}
        if self.token:
            headers["authorization"] = f"Bearer {self.token}"
        path = f"{self._parts.path.rstrip('/').removesuffix('/v1')}/v1/graphs"
        connection.request("POST", path, body(graph, self.model), headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise _error(answer.status, answer.read())
        for line in answer:
            data = line.removeprefix(b"data: ").strip()
            if line.startswith(b"data: ") and data != b"[DONE]":
                yield json.loads(data)


def body(graph: Graph, model: str = "") -> bytes:
    """A graph as /v1/graphs takes it, to be answered as a stream."""
    calls = [{**msgspec.to_builtins(call), **fields(call.sampling)} for call in graph.calls]
    for call in calls:
        del call["sampling"]
    return msgspec.json.encode(
        {"model": model, "calls": calls, "values": graph.values, "get": graph.get, "stream": True}
    )


def fields(sampling: Any) -> dict[str, Any]:
    """Sampling under the names that the API has for it."""
    names = (
        "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
        "repetition_penalty", "seed", "ignore_eos",
    )  # fmt: skip
    found = {name: getattr(sampling, name) for name in names}
    found |= {"stop": list(sampling.stop), "stop_token_ids": list(sampling.stop_token_ids)}
    found["include_stop_str_in_output"] = sampling.include_stop
    found["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    grammar = sampling.grammar
    if grammar is not None:
        kinds = {"json_schema": "json", "lark": "grammar"}
        text: Any = grammar.text
        if grammar.kind == "json_object":
            text = True
        elif grammar.kind == "choice":
            text = json.loads(grammar.text)
        found["structured_outputs"] = {kinds.get(grammar.kind, grammar.kind): text}
    return {name: value for name, value in found.items() if value not in (None, [], {})}


def _event(event: dict[str, Any]) -> Event | None:
    name = event.get("variable", "")
    if "error" in event:
        error = _error(event["error"].get("status", 500), msgspec.json.encode({"error": event["error"]}))
        if not name:
            raise error
        return Failed(name, error)
    if event["object"] == "graph.usage":
        return None
    if event["object"] == "graph.delta":
        return Said(name, event["text"])
    return Value(name, event["text"], event.get("finish_reason"))


def _error(status: int, body: bytes) -> NubesError:
    try:
        error = json.loads(body)["error"]
        message, code = error["message"], error.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, code = body[:200].decode("utf-8", "replace"), ""
    if code == "transform_failed":
        return TransformFailed(message)
    kind = UsageError if 400 <= status < 500 and status != 429 else Unavailable
    return kind(message)
