"""LLMs of an app."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from nubes.api.cls import Cls
from nubes.api.declaring import Declared, Defaults, declare
from nubes.kernel.errors import UsageError
from nubes.kernel.units import size_bytes

if TYPE_CHECKING:
    from nubes.api.deployment import Deployment

OVERHEAD_BYTES = 1 << 29  # of an engine beside its KV cache: weights, interpreter, buffers


def make_llm(model: str, given: dict[str, Any], defaults: Defaults, deployment: Deployment) -> Cls:
    """The class of the cloud that serves `model`; see `App.llm`. Raises `UsageError`."""
    from nubes.llm.declaring import check, is_fleet, most_engines
    from nubes.llm.service import Service
    from nubes.llm.spec import LLMSpec

    fields = {field.name for field in msgspec.structs.fields(LLMSpec)} - {"model", "kv_memory_bytes"}
    chosen = {name: given.pop(name) for name in list(given) if name in fields}
    kv_bytes = size_bytes(given.pop("kv_memory", "1GiB"), "kv_memory")
    try:
        spec = msgspec.convert({**chosen, "model": model, "kv_memory_bytes": kv_bytes}, LLMSpec)
    except msgspec.ValidationError as error:
        raise UsageError(f"app.llm: {error}.", "See the options of app.llm.") from None
    check(spec)
    more = 1 + bool(spec.fusion) + bool(spec.restoration)  # each keeps as much again in host memory
    name = "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in spec.label.split("/")[-1])
    options: dict[str, Any] = {
        "name": name,
        "memory": f"{(kv_bytes * more + OVERHEAD_BYTES) * most_engines(spec) >> 20}MiB",
        "min_instances": 1,
        "max_instances": 1,
        "timeout": "1h",
        "serialized": True,
        **given,
    }
    members: dict[str, Any] = {"spec": spec, "__module__": Service.__module__, "__qualname__": name}
    if is_fleet(spec):
        from nubes.drivers.local.llm_replicas import open_fleet

        members["open_fleet"] = staticmethod(open_fleet)
    served = type("Service", (Service,), members)
    declared: Declared = declare(served, options, defaults)
    declared = declared._replace(spec=msgspec.structs.replace(declared.spec, model=spec.label))
    return Cls(served, declared, deployment)
