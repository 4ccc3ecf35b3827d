"""OpenAI's and Anthropic's endpoints at the gateway's root: each request goes to the LLM that its body names."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from nubes.gateway.calls import Target
from nubes.gateway.problems import Problem
from nubes.gateway.requests import body_of, parse

if TYPE_CHECKING:
    from nubes.drivers.local.control_plane import ControlPlane
    from nubes.gateway.web import WebEndpoints

POSTED = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/messages",
    "/v1/messages/count_tokens", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/tokenize", "/detokenize",
    "/v1/graphs",
)  # fmt: skip


class Models:
    """The LLMs of all deployed apps, by name."""

    def __init__(self, plane: ControlPlane, web: WebEndpoints) -> None:
        self._plane = plane
        self._web = web
        self._created = int(time.time())

    def routes(self) -> list[Route]:
        return [
            *(Route(path, _Forward(self, method="POST")) for path in POSTED),
            Route("/v1/responses/{id}", _Forward(self, method="")),
            Route("/v1/models", self._list),
            Route("/v1/models/{name:path}", self._one),
        ]

    def there(self) -> dict[str, Target]:
        """Name -> what answers for it. If two apps have one of the same name, the app of the first name in order."""
        specs = sorted(self._plane.controller.specs.values(), key=lambda spec: spec.name, reverse=True)
        return {spec.model: Target(spec, "web") for spec in specs if spec.model}

    def find(self, body: bytes) -> Target:
        """The LLM that a body names; the only one if it names none. Raises `Problem`."""
        given = parse(body)
        name = str(given.get("model", "")) if isinstance(given, dict) else ""
        there = self.there()
        return next(iter(there.values())) if not name and len(there) == 1 else self.named(name)

    def named(self, name: str) -> Target:
        """The LLM of that name, or the one whose adapter it is: `llm:adapter`. Raises `Problem`."""
        there = self.there()
        found = there.get(name) or there.get(name.partition(":")[0])
        if found is None:
            names = ", ".join(sorted(there)) or "none yet; deploy an app with app.llm(...)"
            what = f"There is no model {name!r}." if name else "'model' is missing."
            raise Problem(404, f"{what} There are: {names}.", param="model", code="model_not_found")
        return found

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await body_of(request)
        await self._web.forward(self.find(body), "", request, body, send)

    def _described(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "nubes"}

    async def _list(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described(name) for name in sorted(self.there())]})

    async def _one(self, request: Request) -> Response:
        name = request.path_params["name"]
        self.named(name)
        return JSONResponse(self._described(name))


class _Forward:
    """One path, as an app of its own: what an LLM answers is handed on message by message."""

    def __init__(self, models: Models, method: str) -> None:
        self._models = models
        self._method = method

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._method and scope["method"] != self._method:
            raise Problem(
                405, f"Use {self._method} here, not {scope['method']}.", code="method_not_allowed",
                headers={"allow": self._method},
            )  # fmt: skip
        await self._models.answer(scope, receive, send)
