"""STEP-LIN: measured times of a layer's matrices (Vidur's profiles, MLSys 2024), and attention from a roofline."""

from __future__ import annotations

from dataclasses import dataclass

from nubes.kernel.errors import UsageError
from nubes.llm.models.facts import HALF, Gpu, Llm, gpu_facts, kv_tokens, llm_facts
from nubes.llm.models.profiles import (
    SUMS_MS,
    SUMS_ROWS,
    all_reduce_ms,
    find,
    layer_ms,
    linear_files,
    stretch,
)  # fmt: skip
from nubes.llm.scheduling.load import Load

ROWS = 16_384  # the table's length; larger steps take time in proportion
PEAK_SHARE = 0.4  # of the peak FLOP/s that prefill attention reaches
BANDWIDTH_SHARE = 0.8  # of the memory's bandwidth that decode attention reaches
# An all-reduce where none was measured: what a DGX A100 shows, by the bytes that a ring sends over a link of 300 GB/s.
LATENCY_S = 30e-6
LINK_SHARE = 0.58


@dataclass(frozen=True, slots=True)
class Lin:
    """Matrices from a table by rows, attention by the FLOP of its query-key pairs and the bytes of KV that it reads."""

    name: str
    table: list[float]  # seconds of everything but attention by rows, of one stage
    pair_s: float
    kv_s: float
    kv_tokens: int
    kv_bytes: int
    weight_bytes: int
    gpu: str
    devices: int
    stages: int
    source: str

    def seconds(self, load: Load) -> float:
        rows = load.prefill_rows + load.decodes
        table = self.table
        linear = table[rows] if rows < len(table) else table[-1] * rows / (len(table) - 1)
        if not load.prefills:
            return linear + self.kv_s * load.decode_context
        pairs = load.prefill_pairs + 0.5 * (load.prefill_squares + load.prefill_rows)  # causal within the chunk
        return linear + self.pair_s * pairs + self.kv_s * load.decode_context

    def describe(self) -> str:
        return f"{self.name}: {self.source}."


def lin(
    llm: str = "llama-3-8b", gpu: str = "a100", tp: int = 1, pp: int = 1, overhead_ms: float = 0.0,
    peak_share: float = PEAK_SHARE, bandwidth_share: float = BANDWIDTH_SHARE, utilisation: float = 0.9,
    kv_tokens: int | None = None,
) -> Lin:  # fmt: skip
    """`overhead_ms` is the CPU's time for a step; the shares say how much of the peaks attention reaches."""
    facts, device = llm_facts(llm), gpu_facts(gpu)
    linear, origin = _linear(facts, device, tp)
    reduce, network = _all_reduce(facts, device, tp)
    table = [(of + 2 * facts.layers * ring) / pp + overhead_ms * 1e-3 for of, ring in zip(linear, reduce, strict=True)]
    held = tp * -(-facts.kv_heads // tp) / facts.kv_heads
    return Lin(
        f"lin({facts.name},gpu={device.name},tp={tp},pp={pp})",
        table,
        4 * facts.heads * facts.head_dim * facts.layers / (peak_share * device.flops * tp * pp),
        facts.kv_bytes * held / (bandwidth_share * device.bandwidth * tp * pp),
        _capacity(facts, device, tp, pp, utilisation) if kv_tokens is None else kv_tokens,
        facts.kv_bytes,
        facts.weight_bytes,
        device.name,
        tp * pp,
        pp,
        f"{origin}; attention at {peak_share:.0%} of peak FLOP/s and {bandwidth_share:.0%} of bandwidth{network}; "
        f"{overhead_ms:g} ms of CPU a step",
    )


_capacity = kv_tokens  # the argument of that name hides it


def _linear(llm: Llm, gpu: Gpu, tp: int) -> tuple[list[float], str]:
    """Seconds of the matrices of all layers by rows."""
    import numpy as np

    kind = gpu.name.split("-")[0]
    path = find("vidur", kind, llm.name, "mlp.csv")
    if path is not None:
        rows, ms, _ = layer_ms(path, tp, adds=2)
        return stretch(rows, ms * llm.layers / 1e3, ROWS), "Vidur's measured matrices"
    sums = SUMS_MS.get((llm.name, kind, tp))
    if sums is None:
        there = [f"{model} on {device} (tp 1 to 8)" for model, device in linear_files()]
        there += [f"{m} on {k} (tp {degree})" for m, k, degree in SUMS_MS if (m, k) not in linear_files()]
        raise UsageError(
            f"No profile of {llm.name} on {gpu.name} with tp={tp}: it would be vidur/{kind}/{llm.name}/mlp.csv.",
            f"There are: {', '.join(there)}.",
        )
    return stretch(np.array(SUMS_ROWS), np.array(sums) / 1e3, ROWS), "Vidur's measured matrices at seven sizes"


def _all_reduce(llm: Llm, gpu: Gpu, tp: int) -> tuple[list[float], str]:
    """Seconds of one all-reduce of a step's rows, by rows."""
    import numpy as np

    if tp == 1:
        return [0.0] * (ROWS + 1), ""
    path = find("vidur", "network", f"{gpu.name.split('-')[0]}_dgx_all_reduce.csv")
    if path is not None:
        size, ms = all_reduce_ms(path, tp)
        return stretch(size // (HALF * llm.hidden), ms / 1e3, ROWS), ", all-reduce as measured on a DGX"
    sent = HALF * llm.hidden * 2 * (tp - 1) / tp
    times: list[float] = (LATENCY_S + np.arange(ROWS + 1) * sent / (LINK_SHARE * gpu.link)).tolist()
    return times, f", all-reduce at {LINK_SHARE:.0%} of the link"
