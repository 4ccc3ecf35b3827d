"""Pensieve: conversations whose KV waits for their next turn, simulated on profiled A100s and in the real engine."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from nubes.llm.policies.pensieve import PAPER, Pensieve, interpolate, profiled
from nubes.papers import Claim, Context, Result, at_least, at_most, below, reproduction
from nubes.papers.generating import MODEL, missing
from nubes.papers.serving import capacity, requests, words

if TYPE_CHECKING:
    from nubes.llm.engine.local import LocalEngine
    from nubes.llm.scheduling.load import StepModel
    from nubes.llm.scheduling.step import Step
    from nubes.workloads.llm import LLMWorkload

BOUND_S = 0.12  # P90 of latency per output token that counts as sustained
POOL_BYTES = 40e9  # of KV on each device
HOST = 8  # times as much in host memory
LINK = 25e9  # bytes/s of each device's PCIe link, each way
BLOCK = 32
LIMIT = 8192  # tokens of a conversation
WARM = 0.4  # of the time passes before anything is counted: conversations that had begun come without their KV
THINK_S = (30, 60, 600)

GAIN = Claim(
    "Keeping conversations' KV sustains a higher rate.",
    "highest rate with a P90 latency of at most 120 ms a token, pensieve / stateless, opt-13b",
    "batching=vllm, retention=none",
    at_least(1.3),
    "1.14 to 3.0 times",
)
GAIN_GQA = Claim(
    "More so where KV is small for the model.",
    "the same rate, pensieve / stateless, llama-2-70b (grouped heads)",
    "batching=vllm, retention=none",
    at_least(2.0),
    "up to 3.0 times",
)
BETWEEN = Claim(
    "A cache on the device alone lies in between.",
    "(rate of the device-only cache - stateless) / (pensieve - stateless), worst distance from the inside of 0 to 1",
    "host_blocks=0; retention=none",
    at_most(0.0),
)
FALLS = Claim(
    "The gain falls as people think longer.",
    "pensieve / stateless at 600 s of thinking, divided by that at 30 s",
    "think=30s",
    below(1.0),
)
SAME = Claim(
    "Answers are those of an engine that keeps nothing.", "conversation turns with other tokens, live",
    "retention=none", at_most(0.0),
)  # fmt: skip
ROWS = Claim(
    "Histories are not computed again.", "prompt tokens computed / those of the stateless engine, live",
    "retention=none", at_most(0.45),
)  # fmt: skip
TTFT = Claim(
    "First tokens come sooner.", "mean TTFT from the third turn on, stateless / pensieve, live", "retention=none",
    at_least(2.0),
)  # fmt: skip
OVER_LRU = Claim(
    "Value evicts better than recency.", "seconds of history computed again (by the profile), value / LRU, live",
    "pensieve(by=lru)", below(1.0),
)  # fmt: skip
OVER_WHOLE = Claim(
    "And than whole conversations.", "seconds of history computed again (by the profile), value / whole, live",
    "pensieve(by=conversation)", below(1.0),
)  # fmt: skip
CLAIMS = (GAIN, GAIN_GQA, BETWEEN, FALLS, SAME, ROWS, TTFT, OVER_LRU, OVER_WHOLE)
LIVE = (SAME, ROWS, TTFT, OVER_LRU, OVER_WHOLE)


@reproduction(PAPER, claims=CLAIMS, area="llm", seam="retention", mode="both")
def run(ctx: Context) -> Iterator[Result]:
    """Rates by bisection in virtual time, then thirty conversations with a real model."""
    yield from simulated(ctx)
    yield from live(ctx)


def simulated(ctx: Context) -> Iterator[Result]:
    from nubes.kernel.errors import UsageError
    from nubes.llm.models import step_model

    small = step_model("opt(opt-13b,tp=1)")
    rates: dict[tuple[str, int], list[float]] = {}
    for seed in ctx.each("conversations on opt-13b"):
        for think in THINK_S:
            for system in ("stateless", "device", "pensieve") if think == 60 else ("stateless", "pensieve"):
                rates.setdefault((system, think), []).append(rate(ctx, small, system, think, seed, 0.3, 1.8))
    about = f"{words(offered(ctx, 60, 0, 1.0))} {room(small):,} tokens of KV, {HOST} times that in host memory."
    gains = {think: _ratios(rates["pensieve", think], rates["stateless", think]) for think in THINK_S}
    yield ctx.result(GAIN, gains[60], about, "simulated")
    outside = []
    for none, device, both in zip(*(rates[system, 60] for system in ("stateless", "device", "pensieve")), strict=True):
        outside.append(max(none - device, device - both, 0.0) / max(both - none, 1e-9))
    yield ctx.result(BETWEEN, outside, about, "simulated")
    yield ctx.result(FALLS, _ratios(gains[600], gains[30]), about, "simulated")
    if not ctx.full:
        yield ctx.unmeasured(GAIN_GQA, "It takes many minutes: run it with --scale full.", "simulated")
        return
    try:
        large = step_model("lin(llama-2-70b,gpu=a100,tp=8)")
    except UsageError as error:
        yield ctx.unmeasured(GAIN_GQA, str(error), "simulated")
        return
    values = []
    for seed in ctx.each("conversations on llama-2-70b"):
        none, both = (rate(ctx, large, system, 60, seed, 1.0, 12.0) for system in ("stateless", "pensieve"))
        values.append(both / none)
    yield ctx.result(GAIN_GQA, values, f"{about} On eight A100 with {room(large):,} tokens.", "simulated")


def _ratios(above: list[float], under: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, under, strict=True)]


def room(model: StepModel) -> int:
    """Tokens of KV."""
    return int(POOL_BYTES * model.devices / model.kv_bytes)


def offered(ctx: Context, think: int, seed: int, per_s: float) -> LLMWorkload:
    """Conversations of real chat lengths, several thinking times long."""
    length = max(ctx.pick(900, 1800), ctx.pick(3, 6) * think)
    options = f"rate={per_s},length={length}s,think={think}s,turns=5.5,limit={LIMIT}"
    return requests(ctx, f"conversations({options})", f"chat-like({options})", seed)


def rate(ctx: Context, model: StepModel, system: str, think: int, seed: int, low: float, high: float) -> float:
    """The highest rate of requests that `system` sustains."""

    def sustains(per_s: float) -> bool:
        return served(offered(ctx, think, seed, per_s), model, system) <= BOUND_S

    return capacity(sustains, low, high, ctx.pick(5, 7))


def served(workload: LLMWorkload, model: StepModel, system: str) -> float:
    """P90 of the latency per output token."""
    import numpy as np

    from nubes.drivers.sim.llm import Instance, simulate_llm
    from nubes.llm.scheduling.scheduler import Scheduler

    blocks = room(model) // BLOCK
    if system == "stateless":
        scheduler = Scheduler(blocks, block_size=BLOCK, batching="vllm", retention="none")
    else:
        scheduler = Scheduler(
            blocks, block_size=BLOCK, host_blocks=HOST * blocks if system == "pensieve" else 0,
            batching="orca(reserve=paged)", retention=Pensieve(profile=profiled(model, BLOCK)),
        )  # fmt: skip
    instance = Instance(scheduler, model, BLOCK * model.kv_bytes / (LINK * model.devices), overlap=True)
    outcome = simulate_llm(workload, [instance])
    counted = (outcome.arrived_s >= WARM * workload.seconds) & (outcome.arrived_s < workload.seconds)
    return float(np.percentile((outcome.latency_s / workload.output)[counted], 90))


# -- with a real model ------------------------------------------------------------------------------------------------


def live(ctx: Context) -> Iterator[Result]:
    from nubes.llm.checkpoint import load

    why = missing()
    if why:
        yield from ctx.all_unmeasured(LIVE, why, "live")
        return
    checkpoint = load(MODEL)
    values: dict[Claim, list[float]] = {claim: [] for claim in LIVE}
    profile = measured(checkpoint)
    for seed in ctx.each("conversations with smollm2-135m"):
        people = conversations(seed, ctx.pick(12, 30))
        words_of = partial(_talk, checkpoint, people, profile)
        none, kept = words_of("none", 0), words_of(Pensieve(profile=profile), HOST)
        alone = {by: words_of(Pensieve(by=by, profile=profile), 0) for by in ("value", "lru", "conversation")}
        values[SAME].append(float(sum(none.answers[at] != kept.answers[at] for at in none.answers)))
        values[ROWS].append(kept.rows / none.rows)
        values[TTFT].append(none.later_s / kept.later_s)
        values[OVER_LRU].append(alone["value"].again_s / alone["lru"].again_s)
        values[OVER_WHOLE].append(alone["value"].again_s / alone["conversation"].again_s)
    about = (
        f"{len(people)} made-up conversations of 4 to 6 turns, up to {LIVE_TOGETHER} at once, with smollm2-135m (fp32) "
        "and half the memory that all of them need."
    )
    for claim in LIVE:
        yield ctx.result(claim, values[claim], about, "live")


LIVE_TOGETHER = 4


class Talk:
    """What came of a replay."""

    def __init__(self) -> None:
        self.answers: dict[tuple[int, int], list[int]] = {}
        self.ttft_s: dict[tuple[int, int], float] = {}
        self.rows = 0
        self.again_s = 0.0

    @property
    def later_s(self) -> float:
        """Mean TTFT from the third turn on."""
        late = [ttft for (_, turn), ttft in self.ttft_s.items() if turn >= 2]
        return sum(late) / len(late)


def conversations(seed: int, count: int) -> list[list[list[int]]]:
    """Tokens of each turn of each person."""
    draw = random.Random(f"pensieve {seed}")

    def text(low: int, high: int) -> list[int]:
        return [draw.randint(1000, 40_000) for _ in range(draw.randint(low, high))]

    return [[text(100, 300), *(text(20, 80) for _ in range(draw.randint(3, 5)))] for _ in range(count)]


ANSWER = 16


def measured(checkpoint: Any) -> tuple[tuple[int, float], ...]:
    """Seconds to compute a chunk again, by the context at its end, on this machine: the best of some tries each."""
    from time import perf_counter

    import numpy as np

    from nubes.llm.runtime.native import NativeRuntime
    from nubes.llm.runtime.rows import causal

    runtime = NativeRuntime(checkpoint, "fp32", 128, 16)
    points, context = [], BLOCK
    while context <= 2048:
        rows = causal([(range(context // 16), context - BLOCK, BLOCK)])
        tokens, best = np.arange(BLOCK, dtype=np.int32), float("inf")
        for _ in range(5):
            begun = perf_counter()
            runtime.forward(runtime.embed(tokens), rows)
            best = min(best, perf_counter() - begun)
        points.append((context, best))
        context *= 2
    runtime.close()
    return tuple(points)


def _talk(
    checkpoint: Any, people: list[list[list[int]]], profile: tuple[tuple[int, float], ...], retention: Any, host: int
) -> Talk:
    from nubes.llm.engine.local import LocalEngine
    from nubes.llm.runtime.native import NativeRuntime

    lengths = [sum(len(text) + ANSWER for text in person) for person in people]
    blocks = max(sum(lengths) // 2, LIVE_TOGETHER * max(lengths)) // 16
    runtime = NativeRuntime(checkpoint, "fp32", blocks, 16)
    engine = LocalEngine("smollm2-135m", runtime, checkpoint.tokens, retention=retention, host_blocks=host * blocks)
    talk = Talk()
    _count(engine, talk, profile, people)
    try:
        asyncio.run(_replay(engine, talk, people))
    finally:
        engine.close()
        runtime.close()
    return talk


def _count(
    engine: LocalEngine, talk: Talk, profile: tuple[tuple[int, float], ...], people: list[list[list[int]]]
) -> None:
    """Writes down which rows of prompts are computed, and what those that had been before cost."""
    compose = engine.scheduler.compose

    def counting(now: float) -> Step | None:
        step = compose(now)
        for chunk in step.chunks if step is not None else ():
            talk.rows += chunk.end - chunk.start
            person, turn = map(int, chunk.sequence.session.split("."))
            history = sum(len(text) + ANSWER for text in people[person][:turn])
            for end in range(chunk.start + 1, min(chunk.end, history) + 1):
                talk.again_s += interpolate(profile, end) / BLOCK
        return step

    engine.scheduler.compose = counting  # type: ignore[method-assign]


async def _replay(engine: LocalEngine, talk: Talk, people: list[list[list[int]]]) -> None:
    """Everybody's turns in rounds, some people at once: so that a conversation waits while others talk."""
    together = asyncio.Semaphore(LIVE_TOGETHER)
    history: dict[int, list[int]] = {person: [] for person in range(len(people))}

    async def turn(person: int, nth: int) -> None:
        from time import perf_counter

        from nubes.llm.spec import Request, Sampling

        async with together:
            prompt = history[person] + people[person][nth]
            begun = perf_counter()
            answer: list[int] = []
            sampling = Sampling(max_tokens=ANSWER, temperature=0.0, ignore_eos=True)
            request = Request(id=f"{person}.{nth}", prompt=prompt, sampling=sampling, session=f"{person}.{nth}")
            async for delta in engine.generate(request):
                if not answer:
                    talk.ttft_s[person, nth] = perf_counter() - begun
                answer += delta.tokens
            talk.answers[person, nth] = answer
            history[person] = prompt + answer

    for nth in range(max(map(len, people))):
        await asyncio.gather(*(turn(person, nth) for person, texts in enumerate(people) if nth < len(texts)))
