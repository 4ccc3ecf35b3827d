"""Programs of several calls, end to end on an engine that is a toy."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llm.api_fakes import FakeEngine
from llm.graph_functions import join, shorten
from llm.toy import engine
from nubes.kernel.errors import UsageError
from nubes.llm.graphs import LATENCY, THROUGHPUT, TTFT, Session, json_field, regex, semantic_function, strip
from nubes.llm.graphs.program import SemanticFunction
from nubes.llm.graphs.runner import Failed, Runner, Said, Usage, Value
from nubes.llm.graphs.spec import Call, Graph
from nubes.llm.graphs.transforms import TransformFailed
from nubes.llm.spec import Request, Sampling

GREEDY = Sampling(max_tokens=6, temperature=0.0, ignore_eos=True)


async def alone(made: Any, prompt: str) -> str:
    said = ""
    async for delta in made.generate(Request(id="", prompt=made.tokens.encode(prompt), sampling=GREEDY)):
        said += delta.text
    return said


def test_a_program_says_what_single_calls_say() -> None:
    async def run() -> None:
        async with engine(ordering="parrot", batching="parrot") as made:
            a, b = [await alone(made, f"Text: {text}\nShorter:") for text in ("cat", "dog")]
            async with Session(made):
                one, other = shorten("cat"), shorten("dog")
                both = join(one, other)
                values = list(await asyncio.gather(both.get(), one.get(THROUGHPUT)))
                assert await other.get() == b, "what was needed on the way is there"
                again = join(both, shorten("cow"))
                assert "".join([part async for part in again.stream()]) == await again.get()
            assert values == [await alone(made, f"{a} and {b}:"), a]

    asyncio.run(run())


def test_later_outputs_see_earlier_ones_and_transforms_do_not_change_what_was_written() -> None:
    async def run() -> None:
        async with engine() as made:
            a = await alone(made, "x:")
            b = await alone(made, f"x:{a};")
            call = Call(
                template="x:{{output:a}};{{output:b}}", transforms={"a": (regex("^."),)}, sampling=GREEDY
            )  # fmt: skip
            events = [e async for e in Runner(made).run(Graph(calls=(call,), get={"a": THROUGHPUT, "b": LATENCY}))]
            assert events == [Value("a", a[0], "length"), Value("b", b, "length")]

    asyncio.run(run())


def test_what_fails_takes_along_what_needs_it_and_nothing_else() -> None:
    async def run() -> None:
        async with engine() as made, Session(made):
            bad = SemanticFunction("a:{{output:x}}", {"x": [json_field("a")]}, max_tokens=3)()
            lost, fine = shorten(bad), shorten("b")
            told = await asyncio.gather(lost.get(), fine.get(), return_exceptions=True)
            assert isinstance(told[0], TransformFailed)
            assert isinstance(told[1], str)

    asyncio.run(run())


def test_a_graph_that_is_left_leaves_nothing_behind() -> None:
    async def run() -> None:
        async with engine() as made:
            long = Sampling(max_tokens=400, temperature=0.0, ignore_eos=True)
            calls = tuple(Call(template=f"{n}{{{{output:v{n}}}}}", sampling=long) for n in range(3))
            events = Runner(made).run(Graph(calls=calls, get={"v0": TTFT, "v1": TTFT, "v2": TTFT}))
            assert isinstance(await anext(events), Said)
            await events.aclose()
            while made.stats().running or made.stats().waiting:
                await asyncio.sleep(0.01)
            assert made.stats().free_blocks == made.stats().blocks

    asyncio.run(run())


def test_what_nobody_gets_is_not_computed() -> None:
    async def run() -> None:
        async with engine() as made, Session(made):
            wanted, _ = shorten("a"), shorten("b")
            await wanted.get()
            assert made.stats().generation_tokens == 6

    asyncio.run(run())


def test_control_tokens_in_values_are_plain_text() -> None:
    made: Any = FakeEngine()
    seen: list[tuple[str, bool]] = []
    encode = made.tokens.encode

    def told(text: str, special: bool = True) -> list[int]:
        seen.append((text, special))
        return list(encode(text))

    made.tokens.encode = told

    async def run() -> None:
        call = Call(template="a{{input:x}}{{output:y}}")
        async for _ in Runner(made).run(Graph(calls=(call,), get={"y": LATENCY}, values={"x": "<|end|>"})):
            pass

    asyncio.run(run())
    assert ("<|end|>", False) in seen
    assert ("a", True) in seen


def test_functions_are_told_what_is_wrong() -> None:
    with pytest.raises(UsageError, match="outside of a session"):
        shorten("a")
    with pytest.raises(UsageError, match="takes wrong"):
        semantic_function("a{{input:x}}{{output:y}}")(lambda wrong: None)
    with pytest.raises(UsageError, match="no placeholder"):
        SemanticFunction("a{{output:y}}", {"z": [strip]})


def test_usage_counts_what_was_shared() -> None:
    async def run() -> None:
        async with engine(retention="lru") as made:
            usage = Usage()
            calls = tuple(
                Call(template="{{input:s}}" + f"{n}{{{{output:v{n}}}}}", sampling=GREEDY) for n in range(2)
            )  # fmt: skip
            for n in range(2):
                graph = Graph(calls=calls[n : n + 1], values={"s": "s" * 48}, get={f"v{n}": LATENCY})
                assert not [e async for e in Runner(made).run(graph, usage=usage) if isinstance(e, Failed)]
            assert (usage.prompt, usage.cached, usage.generated) == (98, 48, 12)

    asyncio.run(run())
