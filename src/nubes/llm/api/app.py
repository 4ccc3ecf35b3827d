"""The HTTP API of LLMs: OpenAI's and Anthropic's endpoints, health and metrics, as one ASGI app."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nubes import __version__
from nubes.llm.api import (
    adapters,
    chat,
    completions,
    embeddings,
    fields,
    graphs,
    health,
    messages,
    responses,
    sse,
    tokens,
)
from nubes.llm.api.endpoint import Endpoint, refuse
from nubes.llm.api.metrics import Metrics
from nubes.llm.api.problems import ANTHROPIC, OPENAI, Dialect, Problem
from nubes.llm.api.quota import Quota, Quotas
from nubes.llm.api.service import Call, Service
from nubes.llm.live import Embedder, Engine

STALL_S = 30.0

_OPEN = frozenset({"/livez", "/readyz", "/health", "/version"})
_REQUEST_ID = re.compile(r"[\w.:=+/-]{1,128}", re.ASCII)


def app(
    engines: Mapping[str, Engine],
    embedders: Mapping[str, Embedder] | None = None,
    *,
    keys: Mapping[str, str] | None = None,
    quota: Quota | None = None,
    stall_s: float = STALL_S,
    vllm_metrics: bool = False,
    stored: int = responses.STORED,
) -> Starlette:
    """The app over models by name.

    - `keys`: the user of each API key; without it nobody has to have one, and users are who they say they are.
    - `quota`: what each key's user may have in a minute (all share one if there are no keys).
    - `stall_s`: an engine with work that has not finished a step for that long is not ready.
    - `vllm_metrics`: metrics under vLLM's names as well.
    - `stored`: how many answers of /v1/responses are kept, in memory.
    """
    metrics = Metrics(engines, vllm_metrics)
    service = Service(engines, embedders or {}, metrics, Quotas(quota) if quota is not None else None)
    store = responses.Store(stored)
    f = fields

    def post(path: str, kind: Any, answer: Any, dialect: Dialect = OPENAI, metered: bool = True) -> Route:
        return Route(path, Endpoint(service, kind, answer, dialect, metered), methods=["POST"])

    async def models(request: Request) -> Response:
        return _json({"object": "list", "data": list(service.models().values())})

    async def model(request: Request) -> Response:
        name, there = request.path_params["name"], service.models()
        if name not in there:
            raise service.no_model(name, list(there))
        return _json(there[name])

    async def livez(request: Request) -> Response:
        return _json({"status": "ok"})

    async def readyz(request: Request) -> Response:
        trouble = health.trouble(engines, stall_s)
        body = {"status": "not ready", "reason": trouble} if trouble else {"status": "ok"}
        return _json(body, 503 if trouble else 200)

    async def version(request: Request) -> Response:
        return _json({"version": __version__})

    async def scrape(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    routes = [
        post("/v1/chat/completions", f.Chat, chat.answer),
        post("/v1/completions", f.Completion, completions.answer),
        post("/v1/responses", responses.Respond, responses.Responses(store).answer),
        Route("/v1/responses/{id}", responses.kept(store), methods=["GET", "DELETE"]),
        post("/v1/embeddings", f.Embeddings, embeddings.answer),
        post("/v1/messages", messages.Messages, messages.answer, ANTHROPIC),
        post("/v1/messages/count_tokens", messages.CountTokens, messages.count, ANTHROPIC, metered=False),
        post("/v1/graphs", graphs.Graphs, graphs.answer),
        post("/tokenize", f.Tokenize, tokens.tokenize, metered=False),
        post("/detokenize", f.Detokenize, tokens.detokenize, metered=False),
        post("/v1/load_lora_adapter", f.LoadAdapter, adapters.load, metered=False),
        post("/v1/unload_lora_adapter", f.UnloadAdapter, adapters.unload, metered=False),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/livez", livez),
        Route("/readyz", readyz),
        Route("/health", readyz),
        Route("/version", version),
        Route("/metrics", scrape),
    ]
    paths = frozenset(route.path for route in routes)
    return Starlette(
        routes=routes,
        middleware=[Middleware(Front, metrics=metrics, keys=keys, paths=paths)],
        exception_handlers={Problem: _problem, HTTPException: _http},
    )


class Front:
    """Before all endpoints: ids of requests, keys, counts of answers."""

    def __init__(self, inner: ASGIApp, metrics: Metrics, keys: Mapping[str, str] | None, paths: frozenset[str]) -> None:
        self.inner = inner
        self.metrics = metrics
        self.keys = None if keys is None else {_digest(key): user for key, user in keys.items()}
        self.paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.inner(scope, receive, send)
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        call = Call(request_id=id, path=path, headers={})
        scope["state"] = {**scope.get("state", {}), "call": call}

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(raw=message["headers"])["x-request-id"] = call.request_id
                route = path if path in self.paths else "other"
                self.metrics.http.labels(route, str(message["status"])).inc()
            await send(message)

        if self.keys is not None and path not in _OPEN:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
            user = self.keys.get(_digest(key))
            if user is None:
                message = "The API key is not known." if key else "Send an API key: Authorization: Bearer KEY."
                problem = Problem(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
                return await refuse(told, problem, _dialect(path), call)
            call.user = user
        await self.inner(scope, receive, told)


def _digest(key: str) -> bytes:
    """Keys are compared by digest, so that the time it takes tells nothing of them."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _dialect(path: str) -> Dialect:
    return ANTHROPIC if path.startswith("/v1/messages") else OPENAI


def _json(value: Any, status: int = 200) -> Response:
    return Response(sse.encode(value), status, media_type="application/json")


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    call: Call = request.state.call
    dialect = _dialect(call.path)
    body = dialect.body(error, call.request_id)
    return Response(body, dialect.status(error), error.headers, "application/json")


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.state.call.path
    if error.status_code == 404:
        problem = Problem(404, f"Nothing answers at {path}.", code="not_found")
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        problem = Problem(405, f"{path} takes {allowed}, not {request.method}.", code="method_not_allowed")
    else:
        problem = Problem(error.status_code, str(error.detail))
    problem.headers = dict(error.headers or {})
    return await _problem(request, problem)
