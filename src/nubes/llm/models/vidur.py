"""The step times of the Vidur simulator (MLSys 2024), given a roofline in place of its attention profile.

It stands beside `lin` so that our scheduler can be held against Vidur's, with nothing else between them. Vidur rounds
rows up to 8 and contexts up to 64, merges prefills into one of the root of the sum of their squares, adds 10 % to the
attention of several sequences with grouped queries, counts the second residual `add` of a layer not at all, and reads
its profile through a random forest.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

from nubes.llm.models.facts import HALF, Gpu, Llm, gpu_facts, llm_facts
from nubes.llm.models.profiles import layer_ms, need, stretch
from nubes.llm.scheduling.load import Load

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROWS = 4_096
ROW_STEP, CONTEXT_STEP, TILE = 8, 64, 128
GROUPED = 1.1
LAUNCH_S, SAVE_S = 10e-6, 4e-6
PEAK_SHARE, BANDWIDTH_SHARE = 0.6, 0.8
MARGIN = 0.1  # of memory that stays free
LONGEST = 4_096  # tokens of a request, by which memory is cut into slots


@dataclass(frozen=True, slots=True)
class Vidur:
    """Seconds of all layers; neither the embedding nor the output layer counts."""

    name: str
    table: list[float]  # matrices and the saving of KV, by rows
    launch_s: float
    token_s: float  # to read a token of KV
    row_s: float  # to read a prefill's row and write its result
    pair_s: float
    grouped: float
    kv_tokens: int
    kv_bytes: int
    weight_bytes: int
    gpu: str
    devices: int = 1
    stages: int = 1

    def seconds(self, load: Load) -> float:
        n = load.decodes
        rows = load.prefill_rows + n
        table = self.table
        total = table[rows] if rows < len(table) else table[-1] * rows / (len(table) - 1)
        if n:
            context = -(-(load.decode_context // n) // CONTEXT_STEP) * CONTEXT_STEP
            took = self.launch_s + n * context * self.token_s
            total += took * self.grouped if n > 1 else took
        if load.prefills:
            context = -(-load.prefill_context // CONTEXT_STEP) * CONTEXT_STEP
            chunk = round(sqrt(load.prefill_squares))
            tiled = -(-chunk // TILE) * TILE
            flops_s = tiled * (context + 0.5 * tiled) * self.pair_s
            bytes_s = (context + chunk) * self.token_s + chunk * self.row_s
            took = self.launch_s + (flops_s if flops_s > bytes_s else bytes_s)
            total += took * self.grouped if load.prefills > 1 else took
        return total

    def describe(self) -> str:
        return (
            f"{self.name}: Vidur's own matrix profile and rules; attention at {PEAK_SHARE:.0%} of peak FLOP/s and "
            f"{BANDWIDTH_SHARE:.0%} of bandwidth, {LAUNCH_S * 1e6:g} us a launch, {TILE}-row tiles."
        )


def vidur(llm: str = "llama-3-8b", gpu: str = "a100", kv_tokens: int | None = None) -> Vidur:
    facts, device = llm_facts(llm), gpu_facts(gpu)
    path = need("vidur", device.name.split("-")[0], facts.name, "mlp.csv")
    rows, ms, n = layer_ms(path, 1, adds=1)
    linear = stretch(rows, forest(rows, ms, n) / 1e3, ROWS)
    layer_kv = facts.kv_bytes / facts.layers
    bandwidth = BANDWIDTH_SHARE * device.bandwidth
    table = [
        facts.layers * (linear[min(-(-at // ROW_STEP) * ROW_STEP, ROWS)] + SAVE_S + at * layer_kv / bandwidth)
        for at in range(ROWS + 1)
    ]
    return Vidur(
        f"vidur({facts.name},gpu={device.name})",
        table,
        LAUNCH_S * facts.layers,
        facts.kv_bytes / bandwidth,
        facts.layers * 2 * HALF * facts.heads * facts.head_dim / bandwidth,
        facts.layers * 4 * facts.heads * facts.head_dim / (PEAK_SHARE * device.flops),
        GROUPED if facts.heads > facts.kv_heads else 1.0,
        capacity(facts, device) if kv_tokens is None else kv_tokens,
        facts.kv_bytes,
        facts.weight_bytes,
        device.name,
    )


def capacity(llm: Llm, gpu: Gpu) -> int:
    """Whole slots of the longest request, beside the layers' weights (embeddings are not counted)."""
    room = gpu.memory_bytes * (1 - MARGIN) - HALF * llm.layers * llm.layer_parameters
    return int(room // (llm.kv_bytes * LONGEST)) * LONGEST


def forest(x: NDArray[np.int64], y: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """What a random forest of fully grown trees says at its own points, in expectation.

    A tree sees a bootstrap of n measurements, and answers with the nearest point that is in it (the lower of two).
    So where times jump from one size to the next, the forest rounds the corner.
    """
    import numpy as np

    seen = 1 - (1 - 1 / n) ** n
    said = np.empty(len(x))
    for i in range(len(x)):
        low = max(0, i - 16)  # the weight of the 16th neighbour is below 1e-6
        near = low + np.argsort(2 * np.abs(x[low : i + 17] - x[i]) + (x[low : i + 17] > x[i]))[:16]
        weight = seen * (1 - seen) ** np.arange(len(near))
        said[i] = (weight * y[near]).sum() / weight.sum()
    return said
