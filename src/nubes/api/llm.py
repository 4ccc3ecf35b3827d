"""LLMs of an app."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from nubes.api.cls import Cls
from nubes.api.declaring import Declared, Defaults, declare
from nubes.kernel.policy import make
from nubes.kernel.units import size_bytes

if TYPE_CHECKING:
    from nubes.api.deployment import Deployment

OVERHEAD_BYTES = 1 << 29  # of an instance beside its KV cache: weights, interpreter, buffers


def make_llm(model: str, given: dict[str, Any], defaults: Defaults, deployment: Deployment) -> Cls:
    """The class of the cloud that serves `model`; see `App.llm`. Raises `UsageError`."""
    from nubes.llm.cache.restoration import paired
    from nubes.llm.service import Service
    from nubes.llm.spec import LLMSpec

    fields = {field.name for field in msgspec.structs.fields(LLMSpec)} - {"model", "kv_memory_bytes"}
    chosen = {name: given.pop(name) for name in list(given) if name in fields}
    kv_bytes = size_bytes(given.pop("kv_memory", "1GiB"), "kv_memory")
    spec = msgspec.convert({**chosen, "model": model, "kv_memory_bytes": kv_bytes}, LLMSpec)
    for seam in ("batching", "ordering", "preemption", "retention", "speculation", "restoration", "fusion"):
        if text := getattr(spec, seam):
            make(seam, text)  # a wrong one is an error now, not when an instance starts
    paired(spec.retention, spec.restoration, spec.fusion)
    more = 1 + bool(spec.fusion) + bool(spec.restoration)  # each keeps as much again in host memory
    name = "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in spec.label.split("/")[-1])
    options: dict[str, Any] = {
        "name": name,
        "memory": f"{(kv_bytes * more + OVERHEAD_BYTES) >> 20}MiB",
        "min_instances": 1,
        "max_instances": 1,
        "timeout": "1h",
        "serialized": True,
        **given,
    }
    served = type("Service", (Service,), {"spec": spec, "__module__": Service.__module__, "__qualname__": name})
    declared: Declared = declare(served, options, defaults)
    declared = declared._replace(spec=msgspec.structs.replace(declared.spec, model=spec.label))
    return Cls(served, declared, deployment)
