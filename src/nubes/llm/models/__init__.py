"""Step-time models: how long an engine's steps take on hardware that was measured, and what fits its memory."""

from nubes.llm.models.cpu import fit
from nubes.llm.models.facts import GPUS, LLMS, Gpu, Llm, gpu_facts, kv_tokens, llm_facts
from nubes.llm.models.naming import step_model
from nubes.llm.scheduling.load import Load, StepModel

__all__ = [
    "GPUS",
    "LLMS",
    "Gpu",
    "Llm",
    "Load",
    "StepModel",
    "fit",
    "gpu_facts",
    "kv_tokens",
    "llm_facts",
    "step_model",
]
