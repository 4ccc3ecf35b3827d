"""Orca in the engine: iterations against batches that stay, with the same kernels."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING

from nubes.papers import Claim, Context, Result, at_least
from nubes.papers.generating import MODEL, Answer, ask, by_the_clock, engine, missing, opened, prompts, text
from nubes.papers.serving import capacity, uniform

if TYPE_CHECKING:
    from nubes.llm.checkpoint import Checkpoint
    from nubes.llm.engine.local import LocalEngine
    from nubes.llm.runtime.rows import Runtime

LONGEST = 128  # tokens of a prompt, and of an answer
BATCH = 16
SLOTS = 4 * BATCH * LONGEST
SLOWER = 5.0  # times the latency of a request that is alone
KINDS = {"orca": f"orca(reserve=oracle,max_seqs={BATCH})", "static": f"static(reserve=oracle,max_seqs={BATCH})"}

RATE = Claim(
    "Scheduling by iteration sustains a higher rate.",
    "highest rate with a mean normalised latency below 5 times that of a request alone, iterations / request-level",
    "static",
    at_least(2.0),
    "36.9 times (GPT-3 175B)",
)
SAME = Claim(
    "A batch changes nothing about what is said.",
    "share of greedy answers that are those of batches of one",
    "one request at a time",
    at_least(1.0),
)
CLAIMS = (RATE, SAME)

Load = list[tuple[float, list[int], int]]


def run(ctx: Context) -> Iterator[Result]:
    """All live claims; says so if there is no model."""
    why = missing()
    if why:
        yield from ctx.all_unmeasured(CLAIMS, why, "live")
        return
    checkpoint, runtime = opened("int8", SLOTS)
    tokens = text(checkpoint)
    count, longest = ctx.pick(64, 150), ctx.pick(LONGEST // 2, LONGEST)
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    same = []
    for seed in ctx.each("the highest rates"):
        some = load(tokens, 12, 1e9, seed, longest)
        with engine(checkpoint, runtime) as made:
            alone = asyncio.run(one_by_one(made, some))
        same.append(share(alone, served(checkpoint, runtime, KINDS["orca"], some)))
        bound_s = SLOWER * mean(answer.normalised_s for answer in alone)
        unit = 1.0 / mean(answer.told_s[-1] - answer.sent_s for answer in alone)  # requests/s, one after the other

        def sustains(batching: str, seed: int, bound_s: float, rate: float) -> bool:
            ctx.say(f"{batching} at {rate:.3g} requests/s")
            answers = served(checkpoint, runtime, batching, load(tokens, count, rate, seed, longest))
            return mean(answer.normalised_s for answer in answers) < bound_s

        for kind, batching in KINDS.items():
            holds = partial(sustains, batching, seed, bound_s)
            found[kind].append(capacity(holds, 0.5 * unit, 16.0 * unit, ctx.pick(4, 6)))
    runtime.close()
    about = (
        f"{MODEL} in int8, prompts of {longest // 8} to {longest} and outputs of 1 to {longest} tokens, {count} "
        f"Poisson arrivals at each rate, at most {BATCH} in a batch. Rates of seed 0: {found['orca'][0]:.3g} "
        f"and {found['static'][0]:.3g} requests/s. Ended members of a request-level batch take no rows here, and "
        "nothing is padded."
    )
    yield ctx.result(RATE, [a / b for a, b in zip(found["orca"], found["static"], strict=True)], about, "live")
    yield ctx.result(SAME, same, f"{MODEL} in int8, 12 requests of those lengths at once.", "live")


def load(tokens: Sequence[int], count: int, rate: float, seed: int, longest: int) -> Load:
    """Prompts and outputs of even lengths, up to `longest`."""
    workload = uniform(count / rate, rate, seed, (longest // 8, longest), (1, longest))
    asked = prompts(tokens, workload.prompt.tolist(), seed)
    return list(zip(workload.arrival_s.tolist(), asked, workload.output.tolist(), strict=True))[:count]


async def one_by_one(made: LocalEngine, requests: Load) -> list[Answer]:
    return [await ask(made, prompt, output) for _, prompt, output in requests]


def served(checkpoint: Checkpoint, runtime: Runtime, batching: str, requests: Load) -> list[Answer]:
    with engine(checkpoint, runtime, batching=batching) as made:
        return asyncio.run(by_the_clock(made, requests))


def share(one: Sequence[Answer], other: Sequence[Answer]) -> float:
    return sum(a.tokens == b.tokens for a, b in zip(one, other, strict=True)) / len(one)
