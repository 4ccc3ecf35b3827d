"""A model as a class of the cloud: loaded in the parent that instances are forked from, served by each of these."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

from nubes.api.decorators import asgi_app, concurrent, enter, exit
from nubes.llm.spec import LLMSpec

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from nubes.llm.engine.local import LocalEngine
    from nubes.llm.live import Embedder, Engine
    from nubes.llm.runtime.rows import Runtime

MAX_REQUESTS = 4096  # at once; what is too much for the engine is refused by the engine


@concurrent(max_inputs=MAX_REQUESTS)
class Service:
    """What `app.llm` deploys. Its `spec` is set by whoever makes a subclass of it."""

    spec: ClassVar[LLMSpec]

    @enter(snap=True)
    def load(self) -> None:
        """Reads and packs the weights. Forks share them, and none of them starts a thread before its first step."""
        from nubes.llm.checkpoint import find, load
        from nubes.llm.engine.embedding import Encoder, is_encoder
        from nubes.llm.engine.opening import open_runtime
        from nubes.llm.lora.store import Store

        spec = self.spec
        self.encoder = Encoder(spec.label, path) if is_encoder(path := find(spec.model)) else None
        if self.encoder is not None:
            return
        self.checkpoint = load(spec.model)
        self.tokens = self.checkpoint.tokens
        self.runtime: Runtime = open_runtime(
            self.checkpoint, spec.format, spec.device, spec.threads or None, spec.kv_memory_bytes
        )
        self.store = Store(self.runtime)
        for name, folder in spec.adapters.items():
            self.store.load(name, folder)
        _warm(self.tokens)

    @enter()
    def start(self) -> None:
        from nubes.llm.engine.local import LocalEngine

        spec = self.spec
        self.engine: LocalEngine | None = None
        if self.encoder is not None:
            return
        self.engine = LocalEngine(
            spec.label,
            self.runtime,
            self.tokens,
            batching=spec.batching or None,
            ordering=spec.ordering or None,
            preemption=spec.preemption or None,
            retention=spec.retention or None,
            speculation=spec.speculation or None,
            restoration=spec.restoration or None,
            fusion=spec.fusion or None,
            max_waiting=spec.max_waiting,
            store=self.store,
        )

    @exit()
    async def stop(self) -> None:
        if self.engine is not None:
            await asyncio.to_thread(self.engine.close)

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
