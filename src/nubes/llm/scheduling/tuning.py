"""How many rows an engine step may have."""

from __future__ import annotations

from nubes.kernel.errors import UsageError
from nubes.llm.scheduling.load import Load, StepModel

MOST = 16_384  # rows: beyond that a device has long been busy


def tune(model: StepModel, slo_s: float, decodes: int, context: int, tile: int = 128) -> int:
    """The largest budget of rows whose step takes at most `slo_s`: a multiple of `tile`, which matrices come in.

    Of the rows `decodes` are of running sequences and the rest a chunk of a prompt; each has `context` tokens of KV
    before it. Take what is expected of the one and the 99th percentile of the other. Raises `UsageError` if not even
    the smallest step is fast enough.

    From: Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve (OSDI 2024).
    """

    def seconds(budget: int) -> float:
        return model.seconds(Load.of([(budget - decodes, context)], [context] * decodes))

    least = (decodes // tile + 1) * tile
    if seconds(least) > slo_s:
        raise UsageError(
            f"A step of {decodes} decodes and {least - decodes} rows of a prompt takes {seconds(least):.3g} s.",
            f"Allow more than {slo_s:g} s between tokens, or fewer sequences at once.",
        )
    budget = least
    while budget + tile <= MOST and seconds(budget + tile) <= slo_s:
        budget += tile
    return budget
