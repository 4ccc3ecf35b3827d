"""What it costs to bring dropped KV back, layer by layer, and how long a plan takes.

From: Fast State Restoration in LLM Serving with HCache (EuroSys 2025).
"""

from __future__ import annotations

import msgspec


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
