"""STEP-LIN and what LoRA adapters add to a step."""

from __future__ import annotations

from dataclasses import dataclass

from nubes.llm.models.facts import HALF, Llm, gpu_facts, llm_facts
from nubes.llm.models.lin import BANDWIDTH_SHARE, PEAK_SHARE, Lin, lin
from nubes.llm.scheduling.load import Load

LAUNCH_S = 10e-6  # of a kernel; an adapted matrix takes two of them


@dataclass(frozen=True, slots=True)
class Lora:
    """The base model's step, and the adapters' products: by FLOP or by their bytes, whichever takes longer.

    `row_s`: seconds of one row and one block of its adapter; `block_s`: seconds to read a block of an adapter.
    """

    base: Lin
    row_s: float
    block_s: float
    launch_s: float

    @property
    def name(self) -> str:
        return f"lora({self.base.name})"

    @property
    def kv_tokens(self) -> int:
        return self.base.kv_tokens

    @property
    def kv_bytes(self) -> int:
        return self.base.kv_bytes

    @property
    def weight_bytes(self) -> int:
        return self.base.weight_bytes

    @property
    def gpu(self) -> str:
        return self.base.gpu

    @property
    def devices(self) -> int:
        return self.base.devices

    @property
    def stages(self) -> int:
        return self.base.stages

    def seconds(self, load: Load) -> float:
        took = self.base.seconds(load)
        if load.adapter_rows:
            took += self.launch_s + max(load.adapter_rows * self.row_s, load.adapter_blocks * self.block_s)
        return took

    def describe(self) -> str:
        return (
            f"{self.base.describe().rstrip('.')}; adapters at {PEAK_SHARE:.0%} of peak FLOP/s or "
            f"{BANDWIDTH_SHARE:.0%} of bandwidth, and {LAUNCH_S * 1e6:g} us for each kernel."
        )


def lora(
    llm: str = "llama-2-7b", gpu: str = "a100", tp: int = 1, block_size: int = 16, overhead_ms: float = 0.0
) -> Lora:
    """`block_size`: tokens of a KV block, of which adapters take as many as `blocks_of` says."""
    base, facts, device = lin(llm, gpu, tp, overhead_ms=overhead_ms), llm_facts(llm), gpu_facts(gpu)
    block_bytes = block_size * facts.kv_bytes
    return Lora(
        base,
        2 * block_bytes / HALF / (PEAK_SHARE * device.flops * tp),
        block_bytes / (BANDWIDTH_SHARE * device.bandwidth * tp),
        8 * facts.layers * LAUNCH_S,
    )


def blocks_of(llm: Llm, rank: int, block_size: int = 16) -> int:
    """KV blocks that an adapter of queries, keys, values and outputs takes."""
    q, kv = llm.heads * llm.head_dim, llm.kv_heads * llm.head_dim
    values = rank * llm.layers * (4 * llm.hidden + 2 * q + 2 * kv)
    return -(-values * HALF // (block_size * llm.kv_bytes))
