"""POST /v1/embeddings."""

from __future__ import annotations

import base64
import struct
from typing import Any

from nubes.llm.api import sse
from nubes.llm.api.completions import listed
from nubes.llm.api.fields import Embeddings
from nubes.llm.api.problems import Problem, invalid
from nubes.llm.api.service import Call, Service


async def answer(service: Service, call: Call, asked: Embeddings) -> bytes:
    """A vector for each text, as numbers or as base64 of float32."""
    embedder = service.embedders.get(asked.model)
    if embedder is None:
        if asked.model in service.models():
            message = f"{asked.model} generates text. Models that embed: {', '.join(service.embedders) or 'none'}."
            raise Problem(400, message, "model", "model_not_supported")
        raise service.no_model(asked.model, list(service.embedders))
    if asked.dimensions is not None and asked.dimensions != embedder.dimensions:
        message = f"Vectors of {asked.model} have {embedder.dimensions} dimensions; they cannot be cut."
        raise invalid("dimensions", message)
    texts = listed(asked.input, "input")
    for at, text in enumerate(texts):
        if not text:
            raise invalid(f"input[{at}]" if len(texts) > 1 else "input", "There is nothing to embed: it is empty.")
    vectors, tokens = await embedder.embed(texts)
    if service.quotas is not None:
        service.quotas.spend(call.user, tokens)
    found: list[dict[str, Any]] = [
        {"object": "embedding", "index": at, "embedding": _packed(v) if asked.encoding_format == "base64" else v}
        for at, v in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return sse.encode({"object": "list", "data": found, "model": asked.model, "usage": usage})


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
