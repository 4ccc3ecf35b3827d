"""What it costs to bring dropped KV back, layer by layer, and how long a plan takes.

From: Fast State Restoration in LLM Serving with HCache (EuroSys 2025).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import msgspec

from nubes.kernel.errors import UsageError
from nubes.kernel.policy import make
from nubes.llm.scheduling.load import Load, StepModel

if TYPE_CHECKING:
    from nubes.llm.models import Llm
    from nubes.llm.seams import Fusion, Restoration, Retention

HOST = "host-lru"


class Costs(msgspec.Struct, frozen=True):
    """Of one layer and one history."""

    project_s: float  # keys and values from the layer's input
    hidden_s: float  # to load that input
    token_s: float  # to compute the whole layer
    kv_s: float  # to load keys and values
    hidden_bytes: float = 0.0
    kv_bytes: float = 0.0


class Plan(msgspec.Struct, frozen=True):
    """The first `tokens` layers are computed, the next `hidden` projected from stored inputs, the last `kv` loaded."""

    tokens: int = 0
    hidden: int = 0
    kv: int = 0
    why: str = ""


def seconds(plan: Plan, costs: Costs) -> float:
    """From the beginning until all KV is there.

    One link and one processor work side by side. The link brings the inputs of the hidden layers one after another,
    then the KV; the processor computes the first layers, then projects each layer whose input has come.
    """
    loaded = done = 0.0
    done = plan.tokens * costs.token_s
    for _ in range(plan.hidden):
        loaded += costs.hidden_s
        done = max(done, loaded) + costs.project_s
    return max(done, loaded + plan.kv * costs.kv_s)


def stored_bytes(plan: Plan, costs: Costs) -> float:
    """What the plan keeps of one history."""
    return plan.hidden * costs.hidden_bytes + plan.kv * costs.kv_bytes


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


def costs_of(model: StepModel, llm: Llm, tokens: int, bandwidth: float) -> Costs:
    """Costs by a step model, with a link of `bandwidth` bytes/s to where states are stored.

    A projection takes the share of the matrices' time that its part of their numbers is; 16-bit states.
    """
    matrices_s = model.seconds(Load(decodes=tokens)) / llm.layers  # no attention
    width = llm.kv_heads * llm.head_dim
    hidden_bytes, kv_bytes = 2.0 * tokens * llm.hidden, 4.0 * tokens * width
    return Costs(
        project_s=matrices_s * 2 * llm.hidden * width / llm.layer_parameters,
        hidden_s=hidden_bytes / bandwidth,
        token_s=model.seconds(Load.of([(tokens, 0)])) / llm.layers,
        kv_s=kv_bytes / bandwidth,
        hidden_bytes=hidden_bytes,
        kv_bytes=kv_bytes,
    )
