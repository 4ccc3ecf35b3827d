"""Templates, transforms of values, and the beginnings that prompts share."""

from __future__ import annotations

from typing import Any

import pytest

from nubes.kernel.errors import UsageError
from nubes.llm.graphs import LATENCY, json_field, regex, strip
from nubes.llm.graphs.prefixes import StaticPrefixes, boundaries
from nubes.llm.graphs.runner import encoded
from nubes.llm.graphs.spec import Call, Graph, plan, split
from nubes.llm.graphs.template import Input, Output, Text, parse
from nubes.llm.graphs.transforms import TransformFailed, apply, check


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
