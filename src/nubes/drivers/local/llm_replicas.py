"""The replicas of an LLM that is declared: from its words to a fleet of engines."""

from __future__ import annotations

from nubes.drivers.local.llm_fleet import EngineFleet
from nubes.kernel.errors import UsageError
from nubes.llm.cluster.member import Role
from nubes.llm.declaring import ENGINE_SEAMS
from nubes.llm.engine.opening import Loaded
from nubes.llm.spec import LLMSpec


def open_fleet(spec: LLMSpec, loaded: Loaded) -> EngineFleet:
    """The replicas of an LLM that is declared. Raises `UsageError` if what it is loaded as cannot be shared."""
    from nubes.llm.runtime.native import NativeRuntime

    if not isinstance(loaded.runtime, NativeRuntime):
        raise UsageError(
            f"{spec.label} runs through PyTorch here, where replicas cannot share weights.",
            'Serve it with replicas=1, or on a CPU with a C compiler and device="cpu".',
        )
    prefill, given = spec.prefill_replicas, {seam: getattr(spec, seam) for seam in ENGINE_SEAMS}
    kinds: tuple[Role, Role] = ("prefill", "decode") if prefill else ("both", "both")
    return EngineFleet(
        spec.model,
        name=spec.label,
        roles=[kinds[n >= prefill] for n in range(spec.replicas)],
        kv_bytes=spec.kv_memory_bytes,
        format=spec.format,
        threads=loaded.runtime.threads,
        routing=spec.routing or ("distserve" if prefill else None),
        migration=spec.migration or None,
        scaling=spec.scaling or None,
        max_waiting=spec.max_waiting,
        adapters=spec.adapters,
        loaded=loaded,
        **{seam: text for seam, text in given.items() if text},
    )
