"""What it costs to bring dropped KV back on hardware that a step model describes."""

from __future__ import annotations

from nubes.llm.cache.restoration import Costs
from nubes.llm.models.facts import Llm
from nubes.llm.scheduling.load import Load, StepModel


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
