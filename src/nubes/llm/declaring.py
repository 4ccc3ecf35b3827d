"""What a declared LLM may be: its words are checked when it is declared, not when an instance starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from nubes.kernel.errors import UsageError
from nubes.kernel.policy import make
from nubes.llm.spec import MOST_REPLICAS, LLMSpec

if TYPE_CHECKING:
    from nubes.llm.seams import Fusion, Restoration, Retention

ENGINE_SEAMS = ("batching", "ordering", "preemption", "retention", "speculation", "restoration", "fusion")
FLEET_SEAMS = ("routing", "migration", "scaling")
HOST = "host-lru"


def check(spec: LLMSpec) -> None:
    """Raises `UsageError` for what cannot be served, and `UnknownPolicy`."""
    for seam in (*ENGINE_SEAMS, *FLEET_SEAMS):
        if text := getattr(spec, seam):
            make(seam, text)
    paired(spec.retention, spec.restoration, spec.fusion)
    if not 1 <= spec.replicas <= MOST_REPLICAS:
        raise UsageError(f"replicas={spec.replicas} is out of range.", f"Give 1 to {MOST_REPLICAS}.")
    if not is_fleet(spec):
        named = [word for word in ("routing", "migration", "prefill_replicas") if getattr(spec, word)]
        if named:
            raise UsageError(f"{named[0]} is for several engines, and there is one.", "Give replicas=2 or more.")
        return
    _check_fleet(spec)


def _check_fleet(spec: LLMSpec) -> None:
    prefill = spec.prefill_replicas
    if prefill and not 1 <= prefill < spec.replicas:
        raise UsageError(
            f"prefill_replicas={prefill} of {spec.replicas} leave none to answer.",
            "Give at least 1, and fewer than replicas.",
        )
    if prefill and spec.scaling:
        raise UsageError("scaling does not know which kind of replica to start.", "Leave out prefill_replicas.")
    if most_engines(spec) > MOST_REPLICAS:
        raise UsageError(f"{spec.scaling} may start {most_engines(spec)} engines.", f"Give most={MOST_REPLICAS}.")
    if stays := next((word for word in ("restoration", "fusion") if getattr(spec, word)), ""):
        raise UsageError(f"What {stays} keeps stays with one engine.", "Leave it out, or replicas.")
    if spec.adapters and (prefill or spec.migration not in ("", "none")):
        raise UsageError(
            "Requests with adapters do not move between replicas.", "Leave out migration and prefill_replicas."
        )
    if spec.device not in ("auto", "cpu") or spec.format == "bf16":
        raise UsageError(
            "Replicas share weights on the CPU, in fp32, int8 or int4.", 'Give device="cpu", or replicas=1.'
        )


def is_fleet(spec: LLMSpec) -> bool:
    """Whether it is served by engines in processes of their own."""
    return spec.replicas > 1 or spec.scaling not in ("", "fixed")


def most_engines(spec: LLMSpec) -> int:
    """How many there may be at a time."""
    return max(spec.replicas, make("scaling", spec.scaling).most if spec.scaling else 0)


def paired(
    retention: str | Retention | None, restoration: str | Restoration | None, fusion: str | Fusion | None = None
) -> str | Retention | None:
    """The retention that goes with a restoration: `host-lru` if none is named. Raises `UsageError` for another kind.

    Layers are computed again from a beginning on, so no block may come back before those that stand in front of it.
    """
    if not restoration or restoration == "tokens":
        return retention
    if fusion and fusion != "exact":
        raise UsageError("Texts that are put together leave nothing to restore.", "Name a fusion or a restoration.")
    kept = cast("Retention", make("retention", retention or HOST))
    if not kept.tiered or kept.gaps:
        raise UsageError(
            "What is to be restored has to be kept in host memory, and without gaps.", f'Use retention="{HOST}".'
        )
    return retention or HOST
