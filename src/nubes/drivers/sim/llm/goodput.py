"""How many requests a second engines serve within limits, in virtual time: together, or prompts and answers apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nubes.drivers.sim.llm.engine import simulate_llm
from nubes.drivers.sim.llm.fleet import Hardware, simulate_fleet
from nubes.drivers.sim.llm.instance import Instance
from nubes.drivers.sim.llm.served import Served
from nubes.llm.cluster.fleet import Fleet
from nubes.llm.cluster.member import Role
from nubes.llm.cluster.placement import Parallel, Slo
from nubes.llm.models import gpu_facts
from nubes.llm.scheduling.load import Load, StepModel
from nubes.llm.scheduling.scheduler import Scheduler

if TYPE_CHECKING:
    from nubes.workloads.llm import LLMWorkload

    Offered = Callable[[float], LLMWorkload]  # rate -> requests
    Model = Callable[[Parallel], StepModel]

BLOCK = 16
LONGEST = 512  # rows that fill a device: prompts share a step up to there
DECODES = "vllm(max_seqs=1024,watermark=0)"


@dataclass(frozen=True)
class _Timed:
    """A step model whose steps take all stages' time: what one of `stages` batches under way sees of a pipeline.

    Without `prefill` prompts cost nothing: as if their KV came from elsewhere.
    """

    of: StepModel
    prefill: bool = True

    def seconds(self, load: Load) -> float:
        if not self.prefill and load.prefill_rows:
            if not load.decodes:
                return 0.0
            load = Load(decodes=load.decodes, decode_context=load.decode_context)
        return self.of.seconds(load) * self.of.stages

    def __getattr__(self, name: str) -> Any:
        return getattr(self.of, name)


def attained(served: Served, slo: Slo) -> float:
    """The share of requests that got their first token, and then the others, in time. One token has no time between."""
    output = served.workload.output
    with np.errstate(invalid="ignore", divide="ignore"):
        tpot = np.where(output > 1, (served.end_s - served.first_s) / np.maximum(output - 1, 1), 0.0)
        return float(np.mean((served.ttft_s <= slo.ttft_s) & (tpot <= slo.tpot_s)))


def goodput(offered: Offered, serve: Callable[[LLMWorkload], Served], slo: Slo, start: float = 1.0) -> float:
    """The highest rate that attains the objective, to 3 %, sought from `start` on; 0 if it is below a 64th of that."""

    def keeps(rate: float) -> bool:
        return attained(serve(offered(rate)), slo) >= slo.share

    low = high = start
    if keeps(start):
        while keeps(2 * low):
            low *= 2
        high = 2 * low
    else:
        while not keeps(low / 2):
            low /= 2
            if low < start / 64:
                return 0.0
        low, high = low / 2, low
    while high / low > 1.03:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return low


def _lanes(model: StepModel, prefill: bool = True, **policies: Any) -> list[Instance]:
    """An engine as as many batches as it has stages; they share its memory evenly."""
    blocks = model.kv_tokens // BLOCK // model.stages
    timed: Any = _Timed(model, prefill)
    return [
        Instance(Scheduler(blocks, block_size=BLOCK, retention="none", **policies), timed) for _ in range(model.stages)
    ]


def serve_together(model: StepModel, batching: str = "vllm") -> Callable[[LLMWorkload], Served]:
    return lambda workload: simulate_llm(workload, _lanes(model, batching=batching))


def serve_prompts(model: StepModel) -> Callable[[LLMWorkload], Served]:
    """Prompts alone: every request ends with its first token."""

    def serve(workload: LLMWorkload) -> Served:
        alone = workload.taking(np.arange(workload.requests), output=np.ones_like(workload.output))
        return simulate_llm(alone, _lanes(model, batching=f"vllm(budget={LONGEST})"))

    return serve


def serve_answers(model: StepModel) -> Callable[[LLMWorkload], Served]:
    """Answers alone: prompts are there when they come."""
    return lambda workload: simulate_llm(
        workload, _lanes(model, prefill=False, batching="orca(reserve=paged,max_seqs=1024)")
    )


def serve_apart(
    prefill: StepModel, prefills: int, decode: StepModel, decodes: int, link: float | None = None
) -> Callable[[LLMWorkload], Served]:
    """Prompts and answers on engines of their own, KV over the links between."""
    roles: list[Role] = ["prefill"] * (prefills * prefill.stages)
    roles += ["decode"] * (decodes * decode.stages)
    faster = gpu_facts(prefill.gpu).link if link is None else link

    def serve(workload: LLMWorkload) -> Served:
        made = [lane for _ in range(prefills) for lane in _lanes(prefill, batching=f"vllm(budget={LONGEST})")]
        made += [lane for _ in range(decodes) for lane in _lanes(decode, batching=DECODES)]
        hardware = Hardware(made.__getitem__, tuple(roles), link=faster, latency_s=1e-4)
        return simulate_fleet(workload, Fleet(routing="distserve"), hardware).served

    return serve
