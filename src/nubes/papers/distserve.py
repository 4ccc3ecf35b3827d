"""DistServe: prompts and answers apart against together: goodput in simulation, and two engines on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import TYPE_CHECKING

from nubes.llm.policies.distserve import PAPER
from nubes.papers import Claim, Context, Result, above, at_least, at_most, between, reproduction
from nubes.papers.serving import requests, words

if TYPE_CHECKING:
    from nubes.llm.cluster.placement import Parallel, Plan
    from nubes.llm.scheduling.load import StepModel
    from nubes.workloads.llm import LLMWorkload

QUEUE = Claim(
    "The time to the first token of an engine that only computes prompts is that of an M/D/1 queue.",
    "largest relative error of the mean over 2 to 10 requests a second, opt-13b at 512 tokens",
    "the formula",
    at_most(0.02),
)
TOGETHER = Claim(
    "Together on one A100, the limits allow a low rate.",
    "goodput of opt-13b, 512 tokens in and 64 out, limits 0.4 s and 0.04 s, vLLM's step times",
    "none",
    between(1.4, 2.0),
    "1.6 requests a second",
)
APART = Claim(
    "Two engines for prompts and one for answers serve more for each GPU.",
    "goodput by GPU of 2 + 1 engines, the same work and limits",
    "none",
    at_least(3.0),
    "3.3 requests a second",
)
GAIN = Claim(
    "That is at least twice of what they serve together.",
    "goodput by GPU, apart / together",
    "vllm on one GPU",
    at_least(2.0),
    "2.1 times",
)
SEARCH = Claim(
    "The search gives the phases different degrees of tensor parallelism (opt-66b, chat).",
    "share of the seeds in which they differ",
    "one plan for both",
    at_least(1.0),
)
BEATS = Claim(
    "What it finds beats both phases together on four GPUs.",
    "goodput by GPU, the plan found, simulated as a whole / together with tp=4 and vLLM's step times",
    "vllm with tp=4",
    above(1.0),
    "2 to 4.6 times",
)
HONEST = Claim(
    "Where limits are loose and kernels are the same, together is better, and the advice says so (opt-13b, chat).",
    "share of the seeds in which the advice is to serve together",
    "apart",
    at_least(1.0),
)
SAME = Claim(
    "Tokens are those of one engine.",
    "share of greedy answers that are token for token the same",
    "one engine",
    at_least(1.0),
)
CALM = Claim(
    "Prompts do not disturb those who get answers.",
    "P99 of the time between tokens while prompts come, prompts first on one engine / apart",
    "vllm on the same two cores",
    at_least(3.0),
)
CLAIMS = (QUEUE, TOGETHER, APART, GAIN, SEARCH, BEATS, HONEST, SAME, CALM)

PROMPT, ANSWER = 512, 64
LIMIT = 2048
TOGETHERS = ("vllm", "vllm(budget=512)", "sarathi")
SPACE = ((2, 1), (3, 1), (4, 1), (8, 1), (2, 2), (3, 2), (4, 2), (2, 4))


@reproduction(PAPER, claims=CLAIMS, area="llm", seam="routing", mode="both")
def run(ctx: Context) -> Iterator[Result]:
    """Formulas, then goodput by bisection, then the search for a plan; then live."""
    yield queue(ctx)
    yield from motive(ctx)
    yield from search(ctx)
    yield honest(ctx)
    from nubes.papers.distserve_live import live

    yield from live(ctx, SAME, CALM)


def queue(ctx: Context) -> Result:
    from nubes.drivers.sim.llm.goodput import serve_prompts
    from nubes.llm.cluster.placement import queued_ttft_s
    from nubes.llm.models import step_model
    from nubes.llm.scheduling.load import Load

    model = step_model("opt(opt-13b,tp=1)")
    service_s = model.seconds(Load.of([(PROMPT, 0)]))
    rates, count = ctx.pick((2, 6, 10), (2, 4, 6, 8, 10)), ctx.pick(50_000, 200_000)
    errors = []
    for seed in ctx.each("a queue of prompts"):
        worst = 0.0
        for rate in rates:
            workload = alike(seed, count, rate)
            formula = queued_ttft_s(workload.rate, service_s)
            worst = max(worst, abs(float(serve_prompts(model)(workload).ttft_s.mean()) / formula - 1))
        errors.append(worst)
    about = f"{count:,} prompts of {PROMPT} tokens at each rate, {1e3 * service_s:.1f} ms each."
    return ctx.result(QUEUE, errors, about, "simulated")


def alike(seed: int, count: int, rate: float) -> LLMWorkload:
    """Requests of one size that come at random."""
    import numpy as np

    from nubes.workloads.draws import generator
    from nubes.workloads.llm import LLMWorkload
    from nubes.workloads.llm_synthetic import arrivals

    at = arrivals(generator(seed, "distserve"), rate, count)
    said = f"{PROMPT} tokens in, {ANSWER} out, Poisson arrivals"
    return LLMWorkload("alike", said, at, np.full(count, PROMPT), np.full(count, ANSWER), float(at[-1]))


def motive(ctx: Context) -> Iterator[Result]:
    from nubes.drivers.sim.llm.goodput import goodput, serve_apart, serve_together
    from nubes.llm.cluster.placement import Slo
    from nubes.llm.models import step_model

    count, slo = ctx.pick(800, 4000), Slo(0.4, 0.04)
    vllm, own = step_model("opt(opt-13b,tp=1,engine=vllm)"), step_model("opt(opt-13b,tp=1)")
    one, three = [], []
    for seed in ctx.each("the paper's motive"):
        offered = partial(alike, seed, count)
        one.append(goodput(offered, serve_together(vllm), slo, 2.0))
        three.append(goodput(offered, serve_apart(own, 2, own, 1), slo, 8.0) / 3)
    about = f"{count:,} requests of {PROMPT} tokens in and {ANSWER} out, at random. opt-13b on A100s, KV over NVLink."
    yield ctx.result(TOGETHER, one, about, "simulated")
    yield ctx.result(APART, three, about, "simulated")
    yield ctx.result(GAIN, [a / b for a, b in zip(three, one, strict=True)], about, "simulated")


def search(ctx: Context) -> Iterator[Result]:
    """Over plans of up to eight GPUs an engine; the phases' goodputs by themselves, then the plan as a whole."""
    from nubes.drivers.sim.llm.goodput import goodput, serve_answers, serve_apart, serve_prompts, serve_together
    from nubes.kernel.errors import UsageError
    from nubes.llm.cluster.placement import Parallel, Slo, apart

    seconds, slo, rate = ctx.pick(60.0, 600.0), Slo(2.5, 0.15), 8.0
    space = [Parallel(*one) for one in SPACE]
    differ, gains, plans = [], [], []
    try:
        model(space[0], "vllm")
    except UsageError as error:
        yield from ctx.all_unmeasured((SEARCH, BEATS), str(error), "simulated")
        return
    for seed in ctx.each("the search for a plan"):
        offered = partial(chat, ctx, seed, seconds)

        def phase(
            serve: Callable[[StepModel], Callable[..., object]], offered: object = offered
        ) -> Callable[[Parallel], float]:
            return cache(lambda p: goodput(offered, serve(model(p, "distserve")), slo))  # type: ignore[arg-type]

        plan = apart(rate, space, phase(serve_prompts), phase(serve_answers))
        assert plan.decode is not None
        whole = serve_apart(
            model(plan.prefill, "distserve"), plan.prefills, model(plan.decode, "distserve"), plan.decodes
        )
        found = goodput(offered, whole, slo, 8.0) / plan.devices
        four = goodput(offered, serve_together(model(Parallel(4), "vllm")), slo) / 4
        differ.append(float(plan.prefill.tp != plan.decode.tp))
        gains.append(found / four)
        plans.append(plan.words)
    about = f"{words(chat(ctx, 0, seconds, rate))} Limits 2.5 s and 0.15 s. Found: {plans[0]}."
    yield ctx.result(SEARCH, differ, about, "simulated")
    yield ctx.result(BEATS, gains, about, "simulated")


def honest(ctx: Context) -> Result:
    from nubes.drivers.sim.llm.goodput import goodput, serve_answers, serve_prompts, serve_together
    from nubes.llm.cluster.placement import Parallel, Slo, advise, apart, together
    from nubes.llm.models import step_model

    seconds, slo, rate = ctx.pick(100.0, 600.0), Slo(0.25, 0.1), 8.0
    one, own = [Parallel(1)], step_model("opt(opt-13b,tp=1)")
    said: list[float] = []
    advice: Plan | None = None
    for seed in ctx.each("advice where together is better"):
        offered = partial(chat, ctx, seed, seconds)
        split = apart(
            rate, one, lambda _, o=offered: goodput(o, serve_prompts(own), slo, 4.0),  # type: ignore[misc]
            lambda _, o=offered: goodput(o, serve_answers(own), slo, 4.0),  # type: ignore[misc]
        )  # fmt: skip
        joint = together(
            rate, one, lambda _, o=offered: max(goodput(o, serve_together(own, b), slo, 4.0) for b in TOGETHERS)  # type: ignore[misc]
        )  # fmt: skip
        advice = advise(split, joint)
        said.append(float(advice.decode is None))
    assert advice is not None
    about = f"{words(chat(ctx, 0, seconds, rate))} Limits 0.25 s and 0.1 s. The advice: {advice.words}."
    return ctx.result(HONEST, said, about, "simulated")


def chat(ctx: Context, seed: int, seconds: float, rate: float) -> LLMWorkload:
    """Chats for so long that engines fill up; at least some hundred."""
    count = max(300, round(rate * seconds))
    options = {"rate": rate, "limit": LIMIT, "n": count}
    return requests(ctx, "sharegpt", f"chat-like(rate={rate},length={count / rate}s,limit={LIMIT})", seed, **options)


def model(parallel: Parallel, engine: str) -> StepModel:
    from nubes.llm.models import step_model

    return step_model(f"opt(opt-66b,tp={parallel.tp},pp={parallel.pp},engine={engine})")
