"""Llumnix: requests that move while they run, against dispatch alone; in simulation and between two engines here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nubes.llm.cluster.member import Role
from nubes.llm.policies.llumnix import PAPER
from nubes.papers import Claim, Context, Result, above, at_least, at_most, below, reproduction

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nubes.drivers.sim.llm.fleet import FleetServed
    from nubes.workloads.llm import LLMWorkload

TTFT_ROBIN = Claim(
    "Requests wait far less for their first token than in turn.",
    "P99 of the time to the first token at the highest stable rate, round-robin / llumnix",
    "round-robin",
    at_least(10.0),
    "up to 15 times",
)
LOSS = Claim(
    "Moving requests avoids much of what preemptions cost.",
    "time lost to preemptions by request at the highest stable rate, llumnix / memory-load",
    "memory-load (INFaaS++)",
    at_most(0.7),
)
DECODE = Claim(
    "Answers come faster at the tail.",
    "P99 over the requests of the mean time between tokens, memory-load / llumnix",
    "memory-load (INFaaS++)",
    above(1.0),
    "up to 2 times",
)
TTFT_POISSON = Claim(
    "First tokens come no later than with dispatch by load, where requests come at random.",
    "P99 of the time to the first token, memory-load / llumnix",
    "memory-load (INFaaS++)",
    at_least(1.0),
    "up to 15 times",
)
TTFT_LONG = Claim(
    "And earlier where long requests (mean 512) stand at the heads of queues.",
    "the same with twice as long requests at their highest stable rate",
    "memory-load (INFaaS++)",
    above(1.0),
    "up to 15 times",
)
URGENT = Claim(
    "Urgent requests are isolated from the others.",
    "mean latency of the 10 % of high priority, without priorities / with",
    "llumnix without priorities",
    at_least(1.3),
    "up to 1.5 times",
)
OTHERS = Claim(
    "The others hardly pay for it.",
    "mean latency of the 90 %, with priorities / without",
    "llumnix without priorities",
    below(1.1),
)
COST = Claim(
    "With requests that move, fewer engines do: those that are not needed empty at once.",
    "engine-hours at no higher P99 latency, llumnix / memory-load, both scaled by freeness",
    "memory-load (INFaaS++)",
    at_most(0.8),
    "36 % less",
)
SAME = Claim(
    "An answer that moves is the same.",
    "share of greedy answers that are token for token what they are without moving",
    "no migration",
    at_least(1.0),
)
DOWN = Claim(
    "Moving live stops an answer for less than two steps, however long it is.",
    "largest median gap at the hand-over over contexts of 256 to 4096, in median step times",
    "none",
    below(2.0),
    "20 to 30 ms at any length",
)
COPY = Claim(
    "A blocking copy stops it for longer, the longer it is.",
    "gap at a context of 4096 / at 256, blocking copy",
    "live",
    above(1.5),
)
RECOMPUTE = Claim(
    "So does computing it again.",
    "gap at a context of 4096 / at 256, recompute",
    "live",
    above(1.5),
)
CLAIMS = (TTFT_ROBIN, LOSS, DECODE, TTFT_POISSON, TTFT_LONG, URGENT, OTHERS, COST, SAME, DOWN, COPY, RECOMPUTE)

ENGINES = 16
BOTH: tuple[Role, ...] = ("both",)
SLOTS = 13_600
CAP = 6000
TAIL = 1.5  # the exponent of the Pareto distribution
STABLE_S = 1.0  # mean time to the first token of memory-load, up to which a rate counts as stable
IDEAL = 1600  # tokens of other requests beside which urgent ones run undisturbed


@reproduction(PAPER, claims=CLAIMS, area="llm", seam="routing, migration, scaling", mode="both")
def run(ctx: Context) -> Iterator[Result]:
    """Rates rise until dispatch by load is no longer stable; there all are compared. Then priorities, scaling, live."""
    yield from dispatch(ctx)
    yield from priorities(ctx)
    yield scaled(ctx)
    from nubes.papers.llumnix_live import live

    yield from live(ctx, SAME, DOWN, COPY, RECOMPUTE)


def dispatch(ctx: Context) -> Iterator[Result]:
    count = ctx.pick(3000, 12_000)
    robin, loss, decode, poisson, long = [], [], [], [], []
    rates: list[float] = []
    for seed in ctx.each("dispatch and migration"):
        rate, rival = highest(ctx, seed, count, 256, ctx.pick((50, 56, 62), (44, 48, 52, 56, 60, 64)))
        rates.append(rate)
        work = offered(seed, count, 256, rate)
        ours, turn = serve(work, "llumnix", "llumnix"), serve(work, "round-robin")
        robin.append(p99(turn.served.ttft_s) / p99(ours.served.ttft_s))
        loss.append(ours.lost_s / max(rival.lost_s, 1e-9))
        decode.append(p99(rival.served.tpot_s) / p99(ours.served.tpot_s))
        poisson.append(p99(rival.served.ttft_s) / p99(ours.served.ttft_s))
        rate, rival = highest(ctx, seed, count // 2, 512, ctx.pick((12, 14, 16), (10, 11, 12, 13, 14, 15, 16)))
        ours = serve(offered(seed, count // 2, 512, rate), "llumnix", "llumnix")
        long.append(p99(rival.served.ttft_s) / p99(ours.served.ttft_s))
    about = f"{lengths(count, 256)} {ENGINES} engines, {min(rates):g} to {max(rates):g} requests a second."
    yield ctx.result(TTFT_ROBIN, robin, about, "simulated")
    yield ctx.result(LOSS, loss, about, "simulated")
    yield ctx.result(DECODE, decode, about, "simulated")
    yield ctx.result(TTFT_POISSON, poisson, about, "simulated")
    yield ctx.result(TTFT_LONG, long, f"{lengths(count // 2, 512)} {ENGINES} engines.", "simulated")


def highest(ctx: Context, seed: int, count: int, mean: int, rates: tuple[float, ...]) -> tuple[float, FleetServed]:
    """The highest of these rates at which dispatch by load is stable, or the lowest; and what it served then."""
    import numpy as np

    kept: tuple[float, FleetServed] | None = None
    for rate in rates:
        outcome = serve(offered(seed, count, mean, rate), "memory-load")
        if kept is not None and float(np.nanmean(outcome.served.ttft_s)) > STABLE_S:
            break
        kept = rate, outcome
    assert kept is not None
    return kept


def priorities(ctx: Context) -> Iterator[Result]:
    import numpy as np

    count, rate = ctx.pick(3000, 12_000), 54.0
    faster, slower = [], []
    for seed in ctx.each("priorities"):
        work = offered(seed, count, 256, rate, urgent=0.1)
        base = serve(work, "llumnix", "llumnix").served.latency_s
        ours = serve(work, f"llumnix(ideal={IDEAL})", "llumnix", ordering="priority").served.latency_s
        assert work.priority is not None
        urgent = work.priority < 0
        faster.append(float(np.nanmean(base[urgent]) / np.nanmean(ours[urgent])))
        slower.append(float(np.nanmean(ours[~urgent]) / np.nanmean(base[~urgent])))
    about = f"{lengths(count, 256)} {ENGINES} engines, {rate:g} requests a second, one in ten urgent."
    yield ctx.result(URGENT, faster, about, "simulated")
    yield ctx.result(OTHERS, slower, about, "simulated")


def scaled(ctx: Context) -> Result:
    """Both scale by freeness; of several thresholds for llumnix the cheapest that is no slower counts."""
    count, rate = ctx.pick(6000, 20_000), 20.0
    costs = []
    for seed in ctx.each("how many engines"):
        work = offered(seed, count, 256, rate, cv=4.0)
        rival = serve(work, "memory-load", scaling="freeness(low=10,high=60)", engines=4)
        bound, cheapest = p99(rival.served.latency_s), float("inf")
        for low, high in ((10, 60), (20, 60), (20, 40), (40, 80)):
            ours = serve(work, "llumnix", "llumnix", scaling=f"freeness(low={low},high={high})", engines=4)
            if p99(ours.served.latency_s) <= bound:
                cheapest = min(cheapest, ours.engine_s)
        costs.append(cheapest / rival.engine_s)
    about = f"{lengths(count, 256)} {rate:g} requests a second in bursts (cv 4), 1 to {ENGINES} engines."
    return ctx.result(COST, costs, about, "simulated")


def offered(seed: int, count: int, mean: int, rate: float, cv: float = 1.0, urgent: float = 0.0) -> LLMWorkload:
    """Prompts and answers of power-law lengths."""
    import numpy as np

    from nubes.workloads.draws import generator
    from nubes.workloads.llm import LLMWorkload
    from nubes.workloads.llm_synthetic import arrivals

    draw = generator(seed, "llumnix")
    prompt, output = pareto(draw, count, mean), pareto(draw, count, mean)
    at = arrivals(draw, rate, count, cv)
    priority = np.where(draw.random(count) < urgent, -1, 0) if urgent else None
    return LLMWorkload("power-law", lengths(count, mean), at, prompt, output, float(at[-1]), priority=priority)


def pareto(draw: np.random.Generator, count: int, mean: int) -> NDArray[np.int64]:
    import numpy as np

    drawn = mean * (TAIL - 1) / TAIL * (1 + draw.pareto(TAIL, count))
    return np.clip(np.rint(drawn), 1, CAP).astype(np.int64)


def lengths(count: int, mean: int) -> str:
    return f"{count:,} requests with prompts and answers of Pareto lengths (exponent {TAIL}, mean {mean}, cap {CAP:,})."


def serve(
    work: LLMWorkload, routing: str, migration: str = "none", *, scaling: str = "fixed", engines: int = ENGINES,
    ordering: str = "fcfs",
) -> FleetServed:  # fmt: skip
    """On engines of opt-13b with `SLOTS` tokens of KV, over links of 64 Gbit/s."""
    from nubes.drivers.sim.llm import Instance
    from nubes.drivers.sim.llm.fleet import Hardware, simulate_fleet
    from nubes.llm.cluster.fleet import Fleet
    from nubes.llm.models import step_model
    from nubes.llm.scheduling.scheduler import Scheduler

    model = step_model("opt(opt-13b,tp=1)")

    def make(number: int) -> Instance:
        policies: dict[str, Any] = {"batching": "vllm", "retention": "none", "ordering": ordering}
        return Instance(Scheduler(SLOTS // 16, **policies), model)

    fleet = Fleet(routing=routing, migration=migration, scaling=scaling)
    return simulate_fleet(work, fleet, Hardware(make, engines * BOTH))


def p99(values: NDArray[np.float64]) -> float:
    import numpy as np

    return float(np.nanpercentile(values, 99))
