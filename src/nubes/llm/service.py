"""A model as a class of the cloud: loaded in the parent that instances are forked from, served by each of these."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from nubes.api.decorators import asgi_app, concurrent, enter, exit
from nubes.llm.live import Embedder, Engine
from nubes.llm.spec import LLMSpec

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from nubes.llm.engine.local import LocalEngine
    from nubes.llm.engine.opening import Loaded

MAX_REQUESTS = 4096  # at once; what is too much for the engine is refused by the engine


class Replicas(Engine, Protocol):
    """Several engines as one."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...


class Opener(Protocol):
    def __call__(self, spec: LLMSpec, loaded: Loaded) -> Replicas: ...


@concurrent(max_inputs=MAX_REQUESTS)
class Service:
    """What `app.llm` deploys. Its `spec` is set by whoever makes a subclass of it."""

    spec: ClassVar[LLMSpec]
    open_fleet: ClassVar[Opener | None] = None

    @enter(snap=True)
    def load(self) -> None:
        """Reads and packs the weights. Forks share them, and none of them starts a thread before its first step."""
        from nubes.llm.checkpoint import find
        from nubes.llm.engine.embedding import Encoder, is_encoder
        from nubes.llm.engine.opening import load_model

        spec = self.spec
        self.encoder = Encoder(spec.label, path) if is_encoder(path := find(spec.model)) else None
        if self.encoder is None:
            self.loaded = load_model(spec)
            _warm(self.loaded.checkpoint.tokens)

    @enter()
    async def start(self) -> None:
        self.engine: LocalEngine | Replicas | None = None
        if self.encoder is not None:
            return
        if self.open_fleet is not None:
            self.engine = self.open_fleet(self.spec, self.loaded)
            await self.engine.start()
            return
        from nubes.llm.engine.opening import serve

        self.engine = serve(self.spec, self.loaded)

    @exit()
    async def stop(self) -> None:
        from nubes.llm.engine.local import LocalEngine

        if isinstance(self.engine, LocalEngine):
            await asyncio.to_thread(self.engine.close)
        elif self.engine is not None:
            await self.engine.close()

    @asgi_app(requires_token=True)
    def web(self) -> Starlette:
        from nubes.llm.api import app

        label = self.spec.label
        engines: dict[str, Engine] = {label: self.engine} if self.engine is not None else {}
        embedders: dict[str, Embedder] = {label: self.encoder} if self.encoder is not None else {}
        return app(engines, embedders, vllm_metrics=self.spec.vllm_metrics)


def _warm(tokens: Any) -> None:
    """Does once, in the parent, what the first request would pay for: imports, tables of tokenizer and template."""
    import nubes.llm.api
    import nubes.llm.engine.local  # noqa: F401

    try:
        tokens.encode(tokens.chat([{"role": "user", "content": "Hello"}]))
    except Exception:
        tokens.encode("Hello")  # a model without a chat template
