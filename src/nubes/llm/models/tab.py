"""STEP-TAB: measured prompt and token times of Splitwise (ISCA 2024), interpolated."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import median

from nubes.kernel.errors import UsageError
from nubes.llm.models.facts import gpu_facts, kv_tokens, llm_facts
from nubes.llm.models.lin import BANDWIDTH_SHARE, PEAK_SHARE
from nubes.llm.models.profiles import need, read, stretch
from nubes.llm.scheduling.load import Load

ROWS = 65_536  # of the prompt table: 8,192 tokens, or 64 prompts of 512, were measured
BATCH = 1_024  # of the token table: up to 64 were measured
MIXED = 1.1  # a prompt's step with decodes in it, as Splitwise's simulator takes it
PROMPT = 512  # tokens of each sequence in the measurements of batches


@dataclass(frozen=True, slots=True)
class Tab:
    """A step with prefills takes the time of a prompt of as many rows; one of decodes, that of such a batch.

    The batches were measured at 512 tokens of context and single sequences up to 8,192; the KV that a batch reads
    beyond that, and the earlier context that a chunk attends to, are added by roofline.
    """

    name: str
    prompts: list[float]  # seconds by rows
    tokens: list[float]  # seconds by sequences
    pair_s: float
    kv_s: float
    kv_tokens: int
    kv_bytes: int
    weight_bytes: int
    gpu: str
    devices: int
    stages: int = 1

    def seconds(self, load: Load) -> float:
        n = load.decodes
        if load.prefills:
            rows, table = load.prefill_rows + n, self.prompts
            took = table[rows] if rows < len(table) else table[-1] * rows / (len(table) - 1)
            return (took * MIXED if n else took) + self.pair_s * load.prefill_pairs
        table = self.tokens
        took = table[n] if n < len(table) else table[-1] * n / (len(table) - 1)
        beyond = load.decode_context - PROMPT * n
        return took + self.kv_s * beyond if beyond > 0 else took

    def describe(self) -> str:
        return (
            f"{self.name}: Splitwise's measured prompt and token times; a mixed step takes {MIXED:g} times a prompt's."
        )


def tab(
    llm: str = "llama-2-70b", gpu: str = "a100", tp: int = 8, utilisation: float = 0.9, kv_tokens: int | None = None
) -> Tab:
    facts, device = llm_facts(llm), gpu_facts(gpu)
    hardware = {"a100-80": "a100-80gb", "h100": "h100-80gb"}.get(device.name, device.name)
    hardware += "-pcap" if gpu.endswith("-pcap") else ""
    path = need("splitwise_perf_model.csv")
    table = [
        (row["model"].replace("llama2", "llama-2"), row["hardware"], int(row["tensor_parallel"]), row)
        for row in read(path)
    ]
    rows = [row for *key, row in table if key == [facts.name, hardware, tp]]
    if not rows:
        there = sorted(
            {
                f"{name} on {device.removesuffix('-80gb').replace('-80gb-', '-')} tp={degree}"
                for name, device, degree, _ in table
            }
        )
        raise UsageError(f"Splitwise measured no {facts.name} on {gpu} with tp={tp}.", f"It has: {', '.join(there)}.")
    prompts: dict[int, list[float]] = defaultdict(list)
    tokens: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        prompts[int(row["prompt_size"]) * int(row["batch_size"])].append(float(row["prompt_time"]))
        tokens[int(row["batch_size"])].append(float(row["token_time"]))
    return Tab(
        f"tab({facts.name},gpu={gpu},tp={tp})",
        _table(prompts, ROWS),
        _table(tokens, BATCH),
        4 * facts.heads * facts.head_dim * facts.layers / (PEAK_SHARE * device.flops * tp),
        facts.kv_bytes / (BANDWIDTH_SHARE * device.bandwidth * tp),
        _capacity(facts, device, tp, 1, utilisation) if kv_tokens is None else kv_tokens,
        facts.kv_bytes,
        facts.weight_bytes,
        device.name,
        tp,
    )


_capacity = kv_tokens  # the argument of that name hides it


def _table(measured: dict[int, list[float]], upto: int) -> list[float]:
    """Medians in ms to a table in seconds."""
    import numpy as np

    at = np.array(sorted(measured))
    return stretch(at, np.array([median(measured[x]) for x in at]) / 1e3, upto)
