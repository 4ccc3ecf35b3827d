"""What all endpoints share: the models, who asks, and one way to have something generated."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, NamedTuple, cast

import msgspec

from nubes.llm.api.metrics import Metrics, Watch
from nubes.llm.api.problems import Problem, overloaded
from nubes.llm.api.quota import Quotas
from nubes.llm.graphs.runner import Runner
from nubes.llm.live import Embedder, Engine
from nubes.llm.spec import Delta, Request

log = logging.getLogger("nubes.llm")

REMEMBERED = 1000  # names of unknown fields that were warned of
OWNER = "nubes"


class Model(NamedTuple):
    """What a name stands for."""

    name: str  # as the user wrote it
    base: str  # what the engine is served as
    engine: Engine
    adapter: str = ""


class Call(msgspec.Struct, kw_only=True):
    """One HTTP request."""

    request_id: str
    path: str = ""
    user: str = ""  # of the key; empty if there are no keys
    headers: dict[str, str] = {}  # of the answer

    def who(self, field: str | None) -> str:
        """Whom the work counts to: the key's user, or what the body says if there are no keys."""
        return self.user or field or ""


class Service:
    """The models behind the endpoints."""

    def __init__(
        self, engines: Mapping[str, Engine], embedders: Mapping[str, Embedder], metrics: Metrics,
        quotas: Quotas | None,
    ) -> None:  # fmt: skip
        self.engines = engines
        self.embedders = embedders
        self.metrics = metrics
        self.quotas = quotas
        self.runners: dict[str, Runner] = {}  # of graphs, by engine
        self.created = int(time.time())
        self._warned: set[str] = set()

    def find(self, name: str) -> Model:
        """The engine of a model's name: its own, `name:adapter`, or an adapter's. Raises `Problem`."""
        if not name and len(self.engines) == 1:
            name = next(iter(self.engines))
        if name in self.engines:
            return Model(name, name, self.engines[name])
        base, _, adapter = name.rpartition(":")
        if base in self.engines and adapter in self.engines[base].adapters:
            return Model(name, base, self.engines[base], adapter)
        for base, engine in self.engines.items():
            if name in engine.adapters:
                return Model(name, base, engine, name)
        raise self.no_model(name, list(self.models()))

    def no_model(self, name: str, there: list[str]) -> Problem:
        if not name:
            message = f"'model' is missing. There are: {', '.join(there) or 'none'}."
            return Problem(400, message, "model", "missing_required_parameter")
        message = f"There is no model {name!r}. There are: {', '.join(there) or 'none'}."
        return Problem(404, message, "model", "model_not_found", "invalid_request_error")

    def models(self) -> dict[str, dict[str, Any]]:
        """All names that can be asked for, as /v1/models shows them."""
        found: dict[str, dict[str, Any]] = {}

        def add(name: str, root: str, parent: str | None, context: int) -> None:
            found[name] = {
                "id": name, "object": "model", "created": self.created, "owned_by": OWNER, "root": root,
                "parent": parent, "max_model_len": context,
            }  # fmt: skip

        for name, engine in self.engines.items():
            add(name, name, None, engine.context)
            for adapter in engine.adapters:
                add(f"{name}:{adapter}", adapter, name, engine.context)
        for name, embedder in self.embedders.items():
            add(name, name, None, embedder.context)
        return found

    def warn(self, call: Call, strangers: list[str]) -> None:
        """Tells of fields that nobody knows: in each answer's header, and once in the log."""
        if not strangers:
            return
        shown = [name[:64].encode("ascii", "replace").decode() for name in strangers[:8]]
        shown = ["".join(c if c.isprintable() else "?" for c in name) for name in shown]
        call.headers["x-nubes-warning"] = "unknown fields were passed over: " + ", ".join(shown)
        for name in shown:
            if name not in self._warned and len(self._warned) < REMEMBERED:
                self._warned.add(name)
                log.warning("an unknown field was passed over: %s (request %s)", name, call.request_id)

    async def generate(self, model: Model, request: Request, call: Call) -> AsyncGenerator[Delta, None]:
        """The engine's deltas, watched. Raises `Problem` if one says that it failed."""
        watch = Watch(self.metrics, model.base)
        missing, tokens, whole = request.n, 0, False
        deltas = cast("AsyncGenerator[Delta, None]", model.engine.generate(request))
        try:
            async with aclosing(deltas):
                async for delta in deltas:
                    watch.saw(delta)
                    tokens += len(delta.tokens)
                    if delta.finish is not None:
                        missing -= 1
                        if delta.finish == "error":
                            message = delta.error or "The engine failed on this request."
                            raise Problem(500, message, code="engine_failed")
                        if delta.finish == "abort":
                            raise overloaded(delta.error or "The engine gave this request up. Send it again.")
                    yield delta
            if missing:
                raise RuntimeError(f"the engine left {missing} of {request.n} choices without an end")
            whole = True
        finally:
            watch.end(whole, missing)
            if self.quotas is not None and tokens:
                self.quotas.spend(call.user, tokens + len(request.prompt))


def new_id(prefix: str) -> str:
    return prefix + uuid.uuid4().hex
