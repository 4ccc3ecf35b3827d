"""Graphs: templates, deduction, the manager's order, prefixes, and programs end to end on an engine that is a toy."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.api_fakes import FakeEngine, served
from llm.toy import engine
from nubes.kernel.errors import Unavailable, UsageError
from nubes.llm.api import app
from nubes.llm.graphs import LATENCY, THROUGHPUT, TTFT, Session, json_field, regex, semantic_function, strip
from nubes.llm.graphs.deduction import deduce, depths
from nubes.llm.graphs.manager import Manager
from nubes.llm.graphs.prefixes import StaticPrefixes, boundaries
from nubes.llm.graphs.program import SemanticFunction
from nubes.llm.graphs.runner import Failed, Runner, Said, Usage, Value, encoded
from nubes.llm.graphs.spec import Call, Chain, Graph, Plan, plan, split
from nubes.llm.graphs.template import Input, Output, Text, parse
from nubes.llm.graphs.transforms import TransformFailed, apply, check
from nubes.llm.spec import Request, Sampling

GREEDY = Sampling(max_tokens=6, temperature=0.0, ignore_eos=True)


def chains(*needs: str) -> tuple[Chain, ...]:
    """Chain n makes the n-th letter of the alphabet from the letters in needs[n]."""
    return tuple(Chain(n, n, (), tuple(of), chr(ord("a") + n)) for n, of in enumerate(needs))


# -- templates ------------------------------------------------------------------------------------------------------


def test_a_template_is_split_at_its_placeholders() -> None:
    assert parse("Hi {{input:x}}: {{ output:y }}!") == (
        Text("Hi "), Input("x"), Text(": "), Output("y"), Text("!"),
    )  # fmt: skip


@pytest.mark.parametrize(
    "template", ["no output", "{{output:y}}", "a{{output:y}}{{output:y}}", "{{input:y}}{{output:y}}"]
)
def test_templates_that_are_none(template: str) -> None:
    with pytest.raises(UsageError):
        parse(template)


def test_a_call_is_split_at_every_output() -> None:
    call = Call(template="a{{input:x}}{{output:y}}b{{input:z}}{{output:w}}", inputs={"x": "v"})
    first, second = split((call,))
    assert (first.inputs, first.output) == (("v",), "y")
    assert (second.inputs, second.output) == (("v", "y", "z"), "w")


@pytest.mark.parametrize(
    ("calls", "get", "said"),
    [
        (("a{{input:b}}{{output:a}}", "a{{input:a}}{{output:b}}"), "a", "made from itself"),
        (("a{{output:a}}", "b{{output:a}}"), "a", "Two things"),
        (("a{{input:x}}{{output:a}}",), "a", "Nothing gives 'x'"),
        (("a{{output:a}}",), "b", "Nothing gives 'b'"),
    ],
)
def test_graphs_that_are_none(calls: tuple[str, ...], get: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan(Graph(calls=tuple(Call(template=text) for text in calls), get={get: LATENCY}))


def test_a_placeholder_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="no placeholder 'z'"):
        split((Call(template="a{{output:y}}", inputs={"z": "v"}),))


# -- transforms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transform", "text", "value"),
    [
        (json_field("name"), 'Sure: {"name": "Ada", "n": 1} ok', "Ada"), (json_field("n.1"), '{"n": [1, {"a": 2}]}', '{"a": 2}'),
        (regex(r"\d+"), "at 42 or 43", "42"), (regex(r"<(\w+)>"), "x <tag>", "tag"), (strip, "  a \n", "a"),
    ],
)  # fmt: skip
def test_transforms(transform: Any, text: str, value: str) -> None:
    assert apply([transform], text) == value


@pytest.mark.parametrize(
    ("transform", "text"), [(json_field("a"), "none"), (json_field("a"), '{"b": 1}'), (regex("x"), "y")]
)
def test_transforms_that_do_not_fit(transform: Any, text: str) -> None:
    with pytest.raises(TransformFailed):
        apply([transform], text)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [("(a|a)*$", "a" * 100 + "b"), ("(?:(?:a{1,1000}){1,1000}){1,1000}b", "a" * 5000)],
)
def test_a_regular_expression_that_takes_for_ever_is_stopped(pattern: str, text: str) -> None:
    with pytest.raises(UsageError, match=r"more than 0\.5 s"):
        apply([regex(pattern)], text)


@pytest.mark.parametrize("pattern", ["(", "a" * 1001, "(?:" * 400 + ")" * 400])
def test_what_is_no_regular_expression(pattern: str) -> None:
    with pytest.raises(UsageError, match="regular expression"):
        check([regex(pattern)])


# -- deduction ------------------------------------------------------------------------------------------------------


def test_map_reduce_is_a_group_and_a_last_call() -> None:
    found = deduce(chains("", "", "", "abc"), {"d": LATENCY})
    assert [found[n].criterion for n in range(4)] == ["throughput"] * 3 + ["latency"]
    assert len({found[n].group for n in range(3)}) == 1
    assert found[0].group >= 0 > found[3].group
    assert [found[n].depth for n in range(4)] == [1, 1, 1, 2]


def test_a_chain_is_wanted_as_its_end_is() -> None:
    needs = chains("", "a", "b")
    assert {of.criterion for of in deduce(needs, {"c": LATENCY}).values()} == {"latency"}
    assert {of.criterion for of in deduce(needs, {"c": THROUGHPUT}).values()} == {"throughput"}
    assert [deduce(needs, {"c": TTFT})[n].criterion for n in range(3)] == ["latency", "latency", "ttft"]


def test_groups_of_groups_and_one_that_all_wait_for() -> None:
    # a feeds b and c (a group), these feed d and e (a group), and f needs both.
    found = deduce(chains("", "a", "a", "b", "c", "de"), {"f": LATENCY})
    assert [found[n].criterion for n in range(6)] == ["latency", *["throughput"] * 4, "latency"]
    assert found[1].group == found[2].group != found[3].group == found[4].group


def test_what_one_waits_for_alone_is_wanted_soon_whatever_else_it_is_part_of() -> None:
    # a and b feed c; d needs a alone.
    found = deduce(chains("", "", "ab", "a"), {"c": LATENCY, "d": LATENCY})
    assert (found[0].criterion, found[0].group) == ("latency", -1)
    assert found[1].criterion == "throughput"


@st.composite
def graphs(draw: st.DrawFn) -> tuple[tuple[Chain, ...], dict[str, Any]]:
    count = draw(st.integers(1, 9))
    needs = [draw(st.sets(st.sampled_from(range(n)), max_size=4)) if n else set() for n in range(count)]
    made = chains(*("".join(chr(ord("a") + m) for m in sorted(of)) for of in needs))
    awaited = draw(st.sets(st.sampled_from(range(count)), min_size=1))
    criteria = st.sampled_from(["latency", "throughput", "ttft", "tpot"])
    return made, {chr(ord("a") + n): draw(criteria) for n in sorted(awaited)}


@given(graphs())
def test_deduction_by_brute_force(case: tuple[tuple[Chain, ...], dict[str, Any]]) -> None:
    """Against the definition: what is needed, the longest way to it, and what members of a group have in common."""
    made, get = case
    by_name = {chain.output: chain for chain in made}

    def needed(name: str) -> set[str]:
        return {name}.union(*(needed(of) for of in by_name[name].inputs))

    def longest(name: str) -> int:
        return 1 + max((longest(of) for of in by_name[name].inputs), default=0)

    found = deduce(made, get)
    assert {made[n].output for n in found} == set().union(*map(needed, get))
    assert {made[n].output: of.depth for n, of in found.items()} == {
        name: longest(name) for name in set().union(*map(needed, get))
    }
    urgent = set().union(*(needed(name) for name, criterion in get.items() if criterion != "throughput"), set())
    for number, of in found.items():
        name = made[number].output
        if get.get(name, "throughput") != "throughput":
            assert of.criterion == get[name]
            assert of.group < 0
        if name not in urgent:
            assert of.criterion == "throughput"
        elif of.criterion == "throughput":  # somebody waits in the end: only as one of several
            assert of.group >= 0
        if of.group >= 0:
            assert of.criterion == "throughput"
            assert {other.depth for other in found.values() if other.group == of.group} == {of.depth}


@given(graphs(), st.integers(0, 2**32), st.booleans())
def test_the_manager_runs_what_is_needed_once_and_in_order(
    case: tuple[tuple[Chain, ...], dict[str, Any]], seed: int, fails: bool
) -> None:
    made, get = case
    draw = random.Random(seed)
    manager = Manager("app", Plan(made, get), 1.5)
    under_way = manager.ready()
    ran: list[int] = []
    there: set[str] = set()
    lost: set[str] = set()
    while under_way:
        task = under_way.pop(draw.randrange(len(under_way)))
        assert set(task.chain.inputs) <= there
        assert task.work.begun_s == 1.5
        ran.append(task.chain.number)
        if fails and draw.random() < 0.2:
            gone = manager.failed(task.chain.output)
            assert not lost & set(gone)
            lost |= set(gone)
        else:
            there.add(task.chain.output)
            under_way += manager.resolved(task.chain.output)
    assert len(ran) == len(set(ran))
    assert there | lost == {made[n].output for n in deduce(made, get)}
    assert not there & lost
    assert manager.done
    for name in there:
        assert not set(made[ord(name) - ord("a")].inputs) & lost


def test_depths_of_long_chains() -> None:
    made = tuple(Chain(n, n, (), (f"v{n - 1}",) if n else (), f"v{n}") for n in reversed(range(5000)))
    assert depths(made)[4999] == 5000


# -- prefixes -------------------------------------------------------------------------------------------------------


def test_prompts_share_the_hashes_of_what_they_share() -> None:
    system, a, b = list(range(40)), [1] * 20, [2] * 20
    one, other = boundaries([system, a, [7]]), boundaries([system, b, [7]])
    assert one[0] == other[0]
    assert one[0][1] == 40
    assert one[1][0] != other[1][0]
    assert boundaries([system, a], "salt")[0] != one[0]
    assert boundaries([[1, 2], a, []])[0][1] == 22, "too short ones are left out"


def test_a_beginning_that_comes_again_is_found_after_some_times() -> None:
    static = StaticPrefixes()
    system = "You are a helpful assistant that answers in rhymes. " * 2
    seen = [static.seen(f"{system}{n} is the question") for n in range(6)]
    assert seen[:3] == [""] * 3
    assert seen[3:] == [system] * 3
    assert static.seen("short") == ""
    assert static.seen("Something else that is long enough to be told apart") == ""


def test_equal_pieces_give_equal_tokens_and_what_begins_a_text_stands_once() -> None:
    class Tokens:
        def encode(self, text: str, special: bool = True) -> list[int]:
            return [0] * special + [ord(letter) for letter in text]

    tokens: Any = Tokens()
    assert encoded(tokens, [("ab", True), ("c", False), ("d", True)]) == [[0, 97, 98], [99], [100]]
    assert encoded(tokens, [("ab", False), ("c", True)]) == [[0, 97, 98], [99]]


# -- programs -------------------------------------------------------------------------------------------------------


@semantic_function(max_tokens=6, temperature=0.0, ignore_eos=True)
def shorten(text: str) -> None:
    """Text: {{input:text}}
    Shorter:{{output:short}}"""


@semantic_function(max_tokens=6, temperature=0.0, ignore_eos=True)
def join(one: str, other: str) -> None:
    """{{input:one}} and {{input:other}}:{{output:both}}"""


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


# -- over HTTP ------------------------------------------------------------------------------------------------------


def test_a_graph_goes_over_http_in_one_request() -> None:
    made: Any = FakeEngine()
    made.say = lambda request: bytes(t for t in request.prompt if t < 256).decode().upper()[-6:]

    async def run(url: str) -> None:
        async with Session(url=url, model="fake"):
            both = join(shorten("cat"), shorten("dog"))
            assert await both.get() == "RTER::"
            bad = SemanticFunction("a:{{output:x}}", {"x": [json_field("a")]}, max_tokens=3)()
            with pytest.raises(TransformFailed, match="no JSON object"):
                await bad.get()
            parts = [part async for part in shorten("cow").stream()]
            assert len(parts) > 1
        async with Session(url=url, model="other"):
            with pytest.raises(UsageError, match="no model 'other'"):
                await shorten("cat").get()

    with served(app({"fake": made})) as url:
        asyncio.run(run(url))
    first, second, last = made.requests[:3]
    assert first.work is not None
    assert last.work is not None
    assert first.work.group == second.work.group != ""
    assert (first.work.criterion, last.work.criterion, last.work.depth) == ("throughput", "latency", 2)


def test_a_session_that_ends_stops_what_the_service_does_for_it() -> None:
    made: Any = FakeEngine()
    made.hold_after = 2

    async def run(url: str) -> None:
        async with Session(url=url, model="fake"):
            parts = shorten("a long story").stream()
            assert await anext(parts)
            assert made.running
            waiting = asyncio.ensure_future(shorten("another").get())
            await asyncio.sleep(0.2)
        with pytest.raises(Unavailable, match="session was closed"):
            await waiting
        await parts.aclose()  # type: ignore[attr-defined]

    with served(app({"fake": made})) as url:
        asyncio.run(run(url))
        assert made.left.wait(5)
        for _ in range(100):
            if not made.running:
                break
            time.sleep(0.05)
        assert not made.running


def test_a_service_that_is_not_there() -> None:
    async def run() -> None:
        async with Session(url="http://127.0.0.1:9", model="fake"):
            with pytest.raises(Unavailable, match="does not answer"):
                await shorten("a").get()

    asyncio.run(run())


def test_the_whole_answer_and_its_usage() -> None:
    httpx2 = pytest.importorskip("httpx2")
    made: Any = FakeEngine()
    body = {
        "model": "fake", "calls": [{"template": "ab{{input:x}}{{output:y}}", "max_tokens": 9}], "values": {"x": "c"},
        "get": {"y": "latency"},
    }  # fmt: skip
    with served(app({"fake": made})) as url:
        answer = httpx2.post(url + "/v1/graphs", json=body).json()
        assert answer["values"] == {"y": {"text": "ABC", "finish_reason": "stop"}}
        assert answer["usage"]["prompt_tokens"] == 3
        body["get"] = {"z": "latency"}
        refused = httpx2.post(url + "/v1/graphs", json=body)
        assert refused.status_code == 400
        assert "Nothing gives 'z'" in refused.json()["error"]["message"]
        endless = {**body["calls"][0], "transforms": {"y": [{"kind": "regex", "argument": "(A|A)*$"}]}}
        body |= {"calls": [endless], "get": {"y": "latency"}, "values": {"x": "a" * 90 + "b"}}
        endless["max_tokens"] = 99
        stopped = httpx2.post(url + "/v1/graphs", json=body)
        assert stopped.status_code == 400
        assert "takes more than" in stopped.json()["error"]["message"]


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
