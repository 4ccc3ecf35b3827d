"""Sarathi-Serve: prompts in chunks beside the decodes, against prompts first, on a profiled A100 and in the engine."""

from __future__ import annotations

from collections.abc import Iterator
from math import log2
from typing import TYPE_CHECKING

from nubes.llm.policies.sarathi import PAPER
from nubes.llm.scheduling.tuning import tune
from nubes.papers import Claim, Context, Result, above, at_least, at_most, below, reproduction, sarathi_live
from nubes.papers.serving import capacity, requests, served, tbt_s, words

if TYPE_CHECKING:
    from nubes.llm.scheduling.load import StepModel
    from nubes.workloads.llm import LLMWorkload

MODEL = "lin(llama-3-8b,gpu=a100,tp=1)"
KV_TOKENS = 400_000
WHOLE = "orca(reserve=paged,max_seqs=128)"  # prompts beside decodes, but not in chunks
PIPELINE = "lin(llama-2-70b,gpu=a100,tp=8,pp=4)"
STRICT_S, RELAXED_S = 0.1, 0.5  # time between tokens that 99 % of tokens keep
WAIT_S = 2.0  # for the median request until its prompt is begun
BUDGETS = (512, 1024, 2048)
SWEPT = (128, 256, 512, 1024, 2048, 4096)
LIMIT = 8192  # tokens of a request: the model's context
TRACES = {
    "arxiv": ("arxiv-summarization", "long-context-like(limit=4096)"),
    "azure": ("azure-llm-2023", "chat-like(limit=8192)"),
}

STRICT = {
    name: Claim(
        f"With chunks a server keeps a strict bound between tokens at a higher rate ({what}).",
        "highest rate with a P99 time between tokens of at most 0.1 s and a median wait of at most 2 s, "
        "best of 512, 1,024 and 2,048 rows / prompts first",
        "vllm",
        at_least(2.0),
        "2.6 times (Mistral-7B on an A100)",
    )
    for name, what in (("arxiv", "summaries of long documents"), ("azure", "conversations"))
}
RELAXED = Claim(
    "Under a relaxed bound the gain is smaller.",
    "the same ratio at 0.5 s / at 0.1 s, the larger of both traces",
    "vllm",
    below(1.0),
)
PARTS = Claim(
    "Neither part does it alone.",
    "highest rate at 0.1 s, both / the better of chunks that do not mix with decodes and whole prompts that do; "
    "the smaller of both traces",
    "sarathi(hybrid=false), sarathi(chunked=false)",
    above(1.0),
)
TUNED = Claim(
    "One profile of steps gives the budget that a sweep would find.",
    "steps of the sweep (factors of two) between the tuned budget and the swept one with the highest rate, "
    "the larger of both traces",
    "128, 256, 512, 1,024, 2,048 and 4,096 rows",
    at_most(1.0),
)
BUBBLES = Claim(
    "Steps of equal size leave fewer bubbles in a pipeline.",
    "share of the stages' time that is bubbles, chunks / whole prompts beside decodes",
    "orca(reserve=paged)",
    below(1.0),
)
CLAIMS = (*STRICT.values(), RELAXED, PARTS, TUNED, BUBBLES, *sarathi_live.CLAIMS)


@reproduction(PAPER, claims=CLAIMS, area="llm", seam="batching", mode="both")
def run(ctx: Context) -> Iterator[Result]:
    """Rates by bisection for every policy, bound and trace."""
    from nubes.llm.models import step_model

    model = step_model(MODEL)
    traces = {name: requests(ctx, *names, seed=0, limit=LIMIT) for name, names in TRACES.items()}
    lines = {
        name: [Line(model, stretch(whole, ctx.pick(300, 1500), seed)) for seed in ctx.each(f"rates on {name}")]
        for name, whole in traces.items()
    }
    both = list(zip(*lines.values(), strict=True))
    about = (
        f"Requests of up to {LIMIT:,} tokens, {ctx.pick(300, 1500):,} in a row at each rate (others for each seed). "
        f"{MODEL}, room for {KV_TOKENS:,} tokens of KV, no time of the CPU beside a step's."
    )
    for name, claim in STRICT.items():
        values = [line.gain(STRICT_S) for line in lines[name]]
        yield ctx.result(claim, values, f"{words(traces[name])} {about} {lines[name][0].told()}", "simulated")
    about = f"{', '.join(name for name, _ in TRACES.values())}. {about}"
    shrinks = [max(line.gain(RELAXED_S) / line.gain(STRICT_S) for line in pair) for pair in both]
    yield ctx.result(RELAXED, shrinks, about, "simulated")
    yield ctx.result(PARTS, [min(line.parts() for line in pair) for pair in both], about, "simulated")
    ctx.say("budgets")
    tuned = [[line.tuned() for line in pair] for pair in both]
    said = f"Tuned and swept on seed 0: {', '.join(f'{ours} and {swept} rows' for ours, swept in tuned[0])}."
    off = [max(abs(log2(ours / swept)) for ours, swept in pair) for pair in tuned]
    yield ctx.result(TUNED, off, f"{about} {said}", "simulated")
    yield bubbles(ctx, traces["arxiv"])
    yield from sarathi_live.run(ctx)


class Line:
    """The highest rates of one stretch of a trace, by policy and bound; each is looked for when it is asked for."""

    def __init__(self, model: StepModel, workload: LLMWorkload) -> None:
        self.model = model
        self.workload = workload
        self.found: dict[tuple[str, float], float] = {}

    def rate(self, policy: str, slo_s: float) -> float:
        import numpy as np

        def sustains(rate: float) -> bool:
            outcome = served(self.workload.scaled(rate), self.model, KV_TOKENS, batching=policy)
            waited_s = float(np.median(outcome.begun_s - outcome.arrived_s))
            return tbt_s(outcome) <= slo_s and waited_s <= WAIT_S

        if (policy, slo_s) not in self.found:
            self.found[policy, slo_s] = capacity(sustains, 0.1, 25.0, 7)
        return self.found[policy, slo_s]

    def best(self, slo_s: float) -> float:
        return max(self.rate(f"sarathi(budget={budget})", slo_s) for budget in BUDGETS)

    def gain(self, slo_s: float) -> float:
        return self.best(slo_s) / self.rate("vllm", slo_s)

    def parts(self) -> float:
        """Both parts over the better of one alone."""
        chunks = (self.rate(f"sarathi(budget={budget},hybrid=false)", STRICT_S) for budget in BUDGETS)
        return self.best(STRICT_S) / max(*chunks, self.rate("sarathi(chunked=false)", STRICT_S))

    def tuned(self) -> tuple[int, int]:
        """The budget that `tune` gives for the batch and the lengths seen in a run, and the swept one that is best."""
        import numpy as np

        rate = self.rate("sarathi(budget=512)", STRICT_S)
        outcome = served(self.workload.scaled(rate), self.model, KV_TOKENS, batching="sarathi(budget=512)")
        decodes = round(float((outcome.end_s - outcome.first_s).sum()) / outcome.seconds)
        context = int(np.percentile(self.workload.prompt + self.workload.output, 99))
        rates = {budget: self.rate(f"sarathi(budget={budget})", STRICT_S) for budget in SWEPT}
        return tune(self.model, STRICT_S, decodes, context), max(SWEPT, key=lambda budget: rates[budget])

    def told(self) -> str:
        return "Requests/s: " + ", ".join(f"{name} {rate:.3g} at {slo:g} s" for (name, slo), rate in self.found.items())


def stretch(whole: LLMWorkload, count: int, seed: int) -> LLMWorkload:
    """So many requests in a row; others for each seed, as long as there are any."""
    import numpy as np

    count = min(count, whole.requests)
    first = seed * count % (whole.requests - count + 1)
    index = np.arange(first, first + count)
    when = whole.arrival_s[index] - whole.arrival_s[first]
    return whole.taking(index, arrival_s=when, seconds=float(when[-1]))


def bubbles(ctx: Context, whole: LLMWorkload) -> Result:
    """More requests than a pipeline of four stages can take, and how much of its time the stages wait."""
    from nubes.drivers.sim.llm import pipelined, simulate_llm
    from nubes.llm.models import step_model
    from nubes.llm.scheduling.scheduler import Scheduler

    model = step_model(PIPELINE)

    def share(batching: str, seed: int) -> float:
        made = pipelined(model, lambda: Scheduler(model.kv_tokens // 64, batching=batching, retention="none"))
        simulate_llm(stretch(whole, ctx.pick(300, 1500), seed).scaled(100.0), made)
        stages = made[0].stages
        assert stages is not None
        return stages.bubbles

    seeds = list(ctx.each("bubbles"))
    ours, theirs = ([share(policy, seed) for seed in seeds] for policy in ("sarathi(budget=512)", WHOLE))
    about = (
        f"{words(whole)} {ctx.pick(300, 1500):,} of them at 100 a second. {PIPELINE}: four batches under way, each "
        f"with a scheduler and a fourth of the memory; chunks {ours[0]:.3f}, whole prompts {theirs[0]:.3f} (seed 0)."
    )
    return ctx.result(BUBBLES, [a / b for a, b in zip(ours, theirs, strict=True)], about, "simulated")
