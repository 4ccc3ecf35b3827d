"""Parrot in the engine: programs as graphs beside it, against a client that makes every call from afar."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from statistics import mean
from time import monotonic
from typing import TYPE_CHECKING

import msgspec

from nubes.papers import Claim, Context, Result, above, at_least
from nubes.papers.generating import MODEL, engine, missing, opened, prompts, text

if TYPE_CHECKING:
    from nubes.llm.checkpoint import Checkpoint
    from nubes.llm.engine.local import LocalEngine
    from nubes.llm.graphs.runner import Usage
    from nubes.llm.graphs.spec import Graph
    from nubes.llm.runtime.rows import Runtime
    from nubes.llm.spec import Delta, Request

RTT_S = 0.25  # between the client and the service
SLOTS = 32_768
HOPS = 8
CHUNKS, CHUNK, PART = 8, 64, 64  # of the map-reduce job: chunks of so many tokens, and answers
HOW = 64  # tokens of instructions at the head of all calls of a program
USERS, SYSTEM, ASKED, ANSWER = 16, 1000, 16, 24
ROUNDS = 2
CHAINS, LINKS = 12, 4
OURS = {"batching": "parrot", "ordering": "parrot", "retention": "lru"}

EVERY = Claim(
    "Every program ends sooner.",
    "smallest ratio of the four programs: time with calls made by a client / as one graph",
    "a client that makes the calls, engine without sharing",
    above(1.0),
    "up to 11.7 times (multi-agent programming)",
)
CHAIN = Claim(
    "A chain saves the way to the client and back at every hop.",
    f"time saved / ({HOPS - 1} round trips of {RTT_S * 1e3:g} ms), chain of {HOPS} calls",
    "a client that makes the calls, engine without sharing",
    at_least(1.0),
)
GROUP = Claim(
    "What is wanted together is batched together.",
    f"time of a map-reduce job over {CHUNKS} chunks, each call for latency / as a task group",
    "no deduction",
    at_least(1.5),
    "2.4 times (map-reduce summarisation)",
)
PREFILL = Claim(
    "A shared prompt is computed once.",
    f"share of prompt tokens that are not computed, {USERS} users of one prompt of {SYSTEM:,} tokens",
    "engine without sharing",
    at_least(0.8),
)
FIFO = Claim(
    "Programs in turn end sooner than requests in turn.",
    f"mean time to the end of {CHAINS} chains of {LINKS} calls, first come first served / deepest first",
    "fcfs",
    above(1.0),
)
CLAIMS = (EVERY, CHAIN, GROUP, PREFILL, FIFO)


def run(ctx: Context) -> Iterator[Result]:
    """All live claims; says so if there is no model."""
    why = missing()
    if why:
        yield from ctx.all_unmeasured(CLAIMS, why, "live")
        return
    checkpoint, runtime = opened("int8", SLOTS)
    kinds: dict[str, Callable[[Checkpoint, int], list[Graph]]] = {
        "chain": chain, "map-reduce": map_reduce, "shared prompt": shared, "agents": agents
    }  # fmt: skip
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    group, spared, fifo = [], [], []
    tries = ctx.pick(2, 4)
    client, graph, apart = Way({}, client=True), Way(OURS), Way(OURS, deduces=False)
    fcfs = Way({**OURS, "ordering": "fcfs"})
    for seed in ctx.each("programs"):
        for kind, make in kinds.items():
            ctx.say(f"{kind}, seed {seed + 1}")
            (theirs, _), (ours, usage) = days(checkpoint, runtime, make(checkpoint, seed), (client, graph), tries)
            times[kind].append((max(theirs), max(ours)))
            if kind == "shared prompt":
                spared.append(sum(of.cached for of in usage) / sum(of.prompt for of in usage))
        (single, _), (grouped, _) = days(checkpoint, runtime, map_reduce(checkpoint, seed), (apart, graph), tries)
        group.append(single[0] / grouped[0])
        (requests, _), (programs, _) = days(checkpoint, runtime, chains(checkpoint, seed), (fcfs, graph), tries)
        fifo.append(mean(requests) / mean(programs))
    runtime.close()
    each = "; ".join(f"{kind} {theirs:.3g} and {ours:.3g} s" for kind, ((theirs, ours), *_) in times.items())
    about = (
        f"{MODEL} in int8, a client {RTT_S * 1e3:g} ms away, the fastest of {tries} turns: {HOPS} calls in a "
        f"chain, map-reduce over {CHUNKS} chunks, {USERS} users of one prompt of {SYSTEM:,} tokens, three agents that "
        f"share a history for {ROUNDS} rounds. Seed 0, by a client and as a graph: {each}."
    )
    ratios = [min(theirs / ours for theirs, ours in pairs) for pairs in zip(*times.values(), strict=True)]
    yield ctx.result(EVERY, ratios, about, "live")
    saved = [(theirs - ours) / ((HOPS - 1) * RTT_S) for theirs, ours in times["chain"]]
    yield ctx.result(CHAIN, saved, about, "live")
    yield ctx.result(
        GROUP, group, f"{MODEL} in int8, {HOW} tokens of instructions, chunks of {CHUNK} and answers of {PART}.", "live"
    )
    yield ctx.result(PREFILL, spared, f"{MODEL} in int8, {ASKED} tokens of each user's own.", "live")
    yield ctx.result(FIFO, fifo, f"{MODEL} in int8, all chains at once, answers of {ANSWER} tokens.", "live")


class Way(msgspec.Struct, frozen=True):
    """How programs are run: by a client call by call, or each in one request; with these policies."""

    policies: dict[str, str]
    client: bool = False
    deduces: bool = True


Day = tuple[list[float], "list[Usage]"]


def days(checkpoint: Checkpoint, runtime: Runtime, graphs: list[Graph], ways: tuple[Way, ...], tries: int) -> list[Day]:
    """The fastest day of each way: they take turns, so that what disturbs the machine meets them all."""
    rounds = [[day(checkpoint, runtime, graphs, way) for way in ways] for _ in range(tries)]
    return [min(of, key=lambda found: sum(found[0])) for of in zip(*rounds, strict=True)]


def day(checkpoint: Checkpoint, runtime: Runtime, graphs: list[Graph], way: Way) -> Day:
    """How long each of these programs takes, all sent at once, and what it used."""
    from nubes.llm.graphs.runner import Failed, Runner
    from nubes.llm.graphs.runner import Usage as Count

    async def one(runner: Runner, graph: Graph, usage: Usage) -> float:
        begun = monotonic()
        if not way.client:
            await asyncio.sleep(RTT_S / 2)
        async for event in runner.run(graph, usage=usage):
            if isinstance(event, Failed):
                raise event.error
        if not way.client:
            await asyncio.sleep(RTT_S / 2)
        return monotonic() - begun

    async def work(made: LocalEngine) -> Day:
        runner = Runner(made, far(made) if way.client else None, deduces=way.deduces)
        usage = [Count() for _ in graphs]
        pairs = zip(graphs, usage, strict=True)
        return list(await asyncio.gather(*(one(runner, graph, of) for graph, of in pairs))), usage

    with engine(checkpoint, runtime, **way.policies) as made:
        return asyncio.run(work(made))


def far(made: LocalEngine) -> Callable[[Request], AsyncIterator[Delta]]:
    """The engine as a client far away sees it: each call by itself, there and back."""

    async def generate(request: Request) -> AsyncIterator[Delta]:
        await asyncio.sleep(RTT_S / 2)
        async for delta in made.generate(msgspec.structs.replace(request, work=None)):
            if delta.finish is not None:
                await asyncio.sleep(RTT_S / 2)
            yield delta

    return generate


# -- the programs -----------------------------------------------------------------------------------------------------


def graph(calls: list[tuple[str, str]], values: dict[str, str], last: str, tokens: int = ANSWER) -> Graph:
    """Greedy calls of (template, variable it makes), whose placeholders are named as the variables are."""
    from nubes.llm.graphs.spec import Call
    from nubes.llm.graphs.spec import Graph as Made
    from nubes.llm.spec import Sampling

    sampling = Sampling(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    made = tuple(Call(template=template + f"{{{{output:{name}}}}}", sampling=sampling) for template, name in calls)
    return Made(calls=made, values=values, get={last: "latency"})


def texts(checkpoint: Checkpoint, lengths: list[int], seed: int) -> list[str]:
    return [checkpoint.tokens.decode(of) for of in prompts(text(checkpoint), lengths, seed)]


def chain(checkpoint: Checkpoint, seed: int, hops: int = HOPS) -> list[Graph]:
    """A summary that every call makes better by one more piece of a text."""
    how, *pieces = texts(checkpoint, [HOW, *[CHUNK] * hops], seed)
    values = {"how": how} | {f"text{n}": piece for n, piece in enumerate(pieces)}
    calls = [("{{input:how}}\nText: {{input:text0}}\nSummary:", "s0")]
    calls += [
        (f"{{{{input:how}}}}\nSummary: {{{{input:s{n - 1}}}}}\nMore: {{{{input:text{n}}}}}\nBetter summary:", f"s{n}")
        for n in range(1, hops)
    ]
    return [graph(calls, values, f"s{hops - 1}")]


def chains(checkpoint: Checkpoint, seed: int) -> list[Graph]:
    return [chain(checkpoint, 1000 * seed + n, LINKS)[0] for n in range(CHAINS)]


def map_reduce(checkpoint: Checkpoint, seed: int) -> list[Graph]:
    """Summaries of all chunks, and one of the summaries."""
    how, *pieces = texts(checkpoint, [HOW, *[CHUNK] * CHUNKS], seed)
    calls = [(f"{{{{input:how}}}}\nText: {{{{input:text{n}}}}}\nSummary:", f"s{n}") for n in range(CHUNKS)]
    every = "\n".join(f"{{{{input:s{n}}}}}" for n in range(CHUNKS))
    calls.append((f"{every}\nAll in all:", "whole"))
    return [graph(calls, {"how": how} | {f"text{n}": piece for n, piece in enumerate(pieces)}, "whole", PART)]


def shared(checkpoint: Checkpoint, seed: int) -> list[Graph]:
    """One program for each user, behind the same instructions."""
    system, *asked = texts(checkpoint, [SYSTEM, *[ASKED] * USERS], seed)
    template = "{{input:system}}\nUser: {{input:asked}}\nAnswer:"
    return [graph([(template, "answer")], {"system": system, "asked": one}, "answer") for one in asked]


def agents(checkpoint: Checkpoint, seed: int) -> list[Graph]:
    """A coder, a reviewer and one who revises, in turn; each sees all that was said."""
    (task,) = texts(checkpoint, [CHUNK], seed)
    said, calls = "Task: {{input:task}}\n", []
    for turn in range(3 * ROUNDS):
        who = ("Coder", "Reviewer", "Reviser")[turn % 3]
        calls.append((f"{said}{who}:", f"turn{turn}"))
        said += f"{who}: {{{{input:turn{turn}}}}}\n"
    return [graph(calls, {"task": task}, f"turn{3 * ROUNDS - 1}")]
