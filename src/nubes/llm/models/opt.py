"""STEP-OPT: the latency model of DistServe (OSDI 2024), with the coefficients its authors fitted on an A100-80GB."""

from __future__ import annotations

import json
from dataclasses import dataclass

from nubes.kernel.errors import UsageError
from nubes.llm.models.facts import gpu_facts, kv_tokens, llm_facts
from nubes.llm.models.profiles import find, read
from nubes.llm.scheduling.load import Load

LARGE_BATCH = 95  # decodes from here on follow the second fit

Fit = tuple[float, float, float]

# LLMServe/DistServe, simdistserve/estimators/profile_data, facebook/opt-13b on one device (Apache-2.0), in ms.
# Prefill: constant, per row, per row^2; decode, small then large batches: constant, per KV token, per sequence.
SHIPPED: dict[str, tuple[Fit, Fit, Fit]] = {
    "distserve": ((18.10, 0.1019, 7.12e-6), (19.93, 6.27e-4, 0.0385), (7.17, 5.80e-4, 0.158)),
    "vllm": ((22.05, 0.1405, 8.08e-6), (23.48, 5.93e-4, 0.0607), (20.21, 4.91e-4, 0.120)),
}
SHIPPED_KV_TOKENS = 66_144


@dataclass(frozen=True, slots=True)
class Opt:
    """Prefill: a + b * rows + c * sum of rows^2 (of a chunk: what its share of the whole prompt's square is).

    Decode: a + b * KV tokens + c * sequences, with a second fit for large batches. DistServe never mixes the two. Here
    a step that does reads the weights once: the larger of the decodes' and the prefills' constant, then everything
    that grows. So it meets both formulas where one side vanishes.
    """

    name: str
    prefill: Fit
    small: Fit
    large: Fit
    threshold: int
    kv_tokens: int
    kv_bytes: int
    weight_bytes: int
    devices: int
    stages: int
    source: str
    gpu: str = "a100-80"

    def seconds(self, load: Load) -> float:
        n = load.decodes
        if not n:
            a, b, c = self.prefill
            ms = a + b * load.prefill_rows + c * (load.prefill_squares + 2 * load.prefill_pairs)
            return ms * 1e-3 / self.stages
        a, b, c = self.small if n < self.threshold else self.large
        ms = a + c * n
        if load.prefills:
            first, row, square = self.prefill
            ms = max(ms, first) + row * load.prefill_rows + square * (load.prefill_squares + 2 * load.prefill_pairs)
        return (ms + b * load.decode_context) * 1e-3 / self.stages

    def describe(self) -> str:
        return f"{self.name}: DistServe's coefficients for an A100-80GB ({self.source})."


def opt(
    llm: str = "opt-13b", tp: int = 1, pp: int = 1, engine: str = "distserve", kv_tokens: int | None = None,
    gpu: str = "a100-80",
) -> Opt:  # fmt: skip
    """`engine`: whose kernels were measured, distserve or vllm."""
    if gpu_facts(gpu).name != "a100-80":
        raise UsageError(f"DistServe measured no {gpu}.", "Use gpu=a100-80, or another step model.")
    if engine not in SHIPPED:
        raise UsageError(f"There is no engine {engine!r}.", f"There are: {', '.join(SHIPPED)}.")
    facts = llm_facts(llm)
    path = find("distserve", f"profiler-a100-80g.{engine}.json")
    if path is None:
        if (facts.name, tp) != ("opt-13b", 1):
            raise UsageError(
                f"Only opt(opt-13b,tp=1) is known without DistServe's profile, not {facts.name} with tp={tp}.",
                "Set NUBES_TRACES to a folder that holds llm-step-profiles/distserve.",
            )
        fits, threshold, source = SHIPPED[engine], LARGE_BATCH, f"{engine}'s engine, rounded"
    else:
        profile = json.loads(path.read_text())
        known = profile.get(f"facebook/{facts.name}", {})
        if str(tp) not in known:
            there = [f"{name.removeprefix('facebook/')} tp={degree}" for name, of in profile.items() for degree in of]
            raise UsageError(f"DistServe's profile has no {facts.name} with tp={tp}.", f"It has: {', '.join(there)}.")
        entry = known[str(tp)]
        a, b, c = (tuple(entry[part]) for part in ("prefill", "decoding_smallbs", "decoding_largebs"))
        fits, threshold, source = (a, b, c), entry["decoding_large_small_bs_threshold"], f"{engine}'s engine"
    room = _capacity(facts.name, tp, pp) if kv_tokens is None else kv_tokens
    return Opt(
        f"opt({facts.name},tp={tp},pp={pp},engine={engine})", *fits, threshold, room, facts.kv_bytes,
        facts.weight_bytes, tp * pp, pp, source,
    )  # fmt: skip


def _capacity(llm: str, tp: int, pp: int) -> int:
    """As DistServe measured it, where it did."""
    path = find("distserve", "max_num_tokens.csv")
    for row in read(path) if path is not None else ():
        if (row["model"], row["tp"], row["pp"]) == (f"facebook/{llm}", str(tp), str(pp)):
            return int(row["max_num_tokens"])
    if (llm, tp, pp) == ("opt-13b", 1, 1):
        return SHIPPED_KV_TOKENS
    return kv_tokens(llm_facts(llm), gpu_facts("a100-80"), tp, pp)
