"""The LLM simulator against Vidur, on its inputs: `python bench/vidur.py`.

Llama-3-8B on one A100 with step times made by Vidur's rules (`vidur(llama-3-8b,gpu=a100)`), 2,000 requests, at most
128 at a time, 30,208 blocks of 16 tokens, under two schedulers. Vidur's figures are data here: its event loop ran these
very inputs on a two-core machine. Its time per output token divides by all output tokens, the first included; here
it does so too.
"""

from __future__ import annotations

import statistics
import sys
from typing import TYPE_CHECKING

import numpy as np
from common import Row, report, show_s

from nubes.drivers.sim.llm import Instance, Served, simulate_llm
from nubes.kernel.errors import NubesError
from nubes.llm.models import step_model
from nubes.llm.policies.vllm import PrefillFirst
from nubes.llm.scheduling.scheduler import Scheduler
from nubes.llm.scheduling.sequence import Sequence
from nubes.llm.scheduling.state import State
from nubes.llm.seams import Batch, Batching
from nubes.workloads.llm import load_llm

if TYPE_CHECKING:
    from nubes.llm.scheduling.load import StepModel
    from nubes.workloads.llm import LLMWorkload

TRACE, MODEL = "vidur/poisson_6.45qps_2000.csv", "vidur(llama-3-8b,gpu=a100)"
BLOCKS, RESIDENT, CHUNK, ROWS = 30_208, 128, 512, 4_096
CLOSE, FASTER, RUNS = 5.0, 30.0, 7  # %, times, runs

# microsoft/vidur at 7d47513 on this trace, with its own matrix profile and the same attention roofline: seconds at the
# percentiles named, and the highest of the requests a second that its event loop was seen to simulate.
VIDUR: dict[str, dict[str, dict[int, float]]] = {
    "sarathi": {
        "TTFT": {50: 0.250, 90: 0.751, 99: 1.252},
        "TPOT": {50: 0.0284, 90: 0.0383, 99: 0.0428},
        "end to end": {50: 4.12, 99: 19.3},
    },
    "vllm": {
        "TTFT": {50: 0.139, 90: 0.456, 99: 0.829},
        "TPOT": {50: 0.0469, 90: 0.0703, 99: 0.0998},
        "end to end": {50: 6.91, 99: 31.6},
    },
}
VIDUR_RATE = {"sarathi": 398.0, "vllm": 432.0}


class Padded(PrefillFirst):
    """vLLM's first scheduler as Vidur models it: a batch of prompts counts as if each were as long as the longest."""

    def compose(self, state: State, now: float) -> Batch:
        prompts: list[tuple[Sequence, int]] = []
        longest, free = 0, state.free_blocks - int(self.watermark * state.pool.size)
        room = self.max_seqs - state.running
        for sequence in state.waiting:
            longest = max(longest, sequence.prompt)
            need = state.need(sequence, self.reserve(sequence))
            if len(prompts) == room or need > free or (len(prompts) + 1) * longest > self.budget:
                break
            free -= need
            prompts.append((sequence, state.rows(sequence)))
        return Batch(not prompts, prompts)


SCHEDULERS: dict[str, str | Batching] = {
    "sarathi": f"sarathi(budget={CHUNK},max_seqs={RESIDENT})",
    "vllm": Padded(ROWS, RESIDENT),
}


def run(workload: LLMWorkload, model: StepModel, name: str) -> tuple[Served, float]:
    """What came of it, and the median of the requests that were simulated in a second."""
    runs = []
    for _ in range(RUNS):
        scheduler = Scheduler(BLOCKS, batching=SCHEDULERS[name], retention="none")
        runs.append(simulate_llm(workload, [Instance(scheduler, model)]))
    return runs[0], statistics.median(workload.requests / one.took_s for one in runs)


def compared(name: str, served: Served, rate: float) -> list[Row]:
    """A row for each of Vidur's figures: how far ours is from it; and the speeds."""
    seconds = {
        "TTFT": served.ttft_s,
        "TPOT": (served.end_s - served.first_s) / served.workload.output,
        "end to end": served.latency_s,
    }
    rows = []
    for metric, percentiles in VIDUR[name].items():
        for percentile, theirs in percentiles.items():
            ours = float(np.percentile(seconds[metric], percentile))
            what, off = f"{name}: {metric} p{percentile}, difference in %", 100.0 * abs(ours / theirs - 1.0)
            rows.append(Row(what, show_s(ours), f"Vidur {show_s(theirs)}", off, CLOSE, False))
    peer = VIDUR_RATE[name]
    what = f"{name}: requests simulated in a second"
    rows.append(Row(what, f"{rate:,.0f}", f"Vidur's event loop {peer:,.0f}", rate / peer, FASTER, True))
    return rows


def main() -> None:
    try:
        workload, model = load_llm(TRACE), step_model(MODEL)
    except NubesError as error:
        print(f"Not measured: {error}", file=sys.stderr)
        return
    rows = []
    for name in VIDUR:
        rows += compared(name, *run(workload, model, name))
    report(f"Against Vidur, {workload.requests:,} requests of {TRACE}", rows)


if __name__ == "__main__":
    main()
