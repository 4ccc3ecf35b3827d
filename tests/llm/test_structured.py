"""Grammars as masks over tokens: what is allowed spells exactly the grammar's texts."""

from __future__ import annotations

import json
import random
import re

import numpy as np
import pytest

from llm.api_fakes import EOS, TOOL, FakeTokens
from nubes.kernel.errors import UsageError
from nubes.llm.api import tools
from nubes.llm.engine import structured
from nubes.llm.spec import Grammar

pytest.importorskip("llguidance", reason="structured output needs llguidance")

TOKENS = FakeTokens()


def spoken(grammar: Grammar, rng: random.Random, limit: int = 400) -> str:
    """A text of random allowed tokens, in a hurry to end."""
    constraint = structured.Constraint(grammar, TOKENS)
    said = b""
    for _ in range(limit):
        allowed = np.flatnonzero(constraint.mask())
        assert len(allowed), said
        if EOS in allowed and (constraint.done or rng.random() < 0.7):
            constraint.advance(EOS)
            assert constraint.done
            return said.decode()
        assert not constraint.done
        allowed = allowed[allowed != EOS]
        quick = [t for t in allowed if t in b'"}]' and rng.random() < 0.8]
        token = int(rng.choice(quick or [t for t in allowed if t < 128] or list(allowed)))
        constraint.advance(token)
        said += bytes([token])
    raise AssertionError(f"no end: {said!r}")


def takes(grammar: Grammar, text: str) -> bool:
    """Whether the masks let a text through, up to an end."""
    constraint = structured.Constraint(grammar, TOKENS)
    for token in text.encode():
        if not constraint.mask()[token]:
            return False
        constraint.advance(token)
    return bool(constraint.mask()[EOS])


SCHEMA = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": 3, "maximum": 42},
        "kind": {"enum": ["a", "bc"]},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 2},
    },
    "required": ["id", "kind"],
    "additionalProperties": False,
    "$defs": {"tag": {"type": "string", "pattern": "^[a-c]{1,3}$"}},
}


def test_a_schema_is_kept() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    grammar = Grammar("json_schema", json.dumps(SCHEMA))
    for seed in range(60):
        jsonschema.validate(json.loads(spoken(grammar, random.Random(seed))), SCHEMA)
    assert takes(grammar, '{"id": 7, "kind": "bc", "tags": ["a", "abc"]}')
    for wrong in ('{"id": 2, "kind": "a"}', '{"id": 7}', '{"id": 7, "kind": "c"}', '{"id": 7, "kind": "a", "x": 1}'):
        assert not takes(grammar, wrong), wrong


def test_objects_regular_expressions_and_choices() -> None:
    for seed in range(30):
        rng = random.Random(seed)
        assert isinstance(json.loads(spoken(Grammar("json_object"), rng)), dict)
        assert re.fullmatch(r"[0-9]{2,3}(-[a-f]+)?", spoken(Grammar("regex", "[0-9]{2,3}(-[a-f]{1,4})?"), rng))
        assert spoken(Grammar("choice", '["yes", "yesterday", "no \\"x\\""]'), rng) in ("yes", "yesterday", 'no "x"')
        assert spoken(Grammar("lark", 'start: "a" | "b" start'), rng).strip("b") == "a"
    assert not takes(Grammar("json_object"), "[1]")
    assert takes(Grammar("choice", '["yes", "yesterday"]'), "yes")


def test_forced_calls_can_be_read() -> None:
    defs = {
        "type": "object",
        "properties": {"p": {"$ref": "#/$defs/P"}},
        "required": ["p"],
        "$defs": {"P": {"type": "integer"}},
    }
    other = {"type": "function", "function": {"name": 'o"dd', "parameters": {**defs, "additionalProperties": False}}}
    for seed in range(20):
        for many in (False, True):
            text = spoken(tools.grammar([TOOL, other], many), random.Random(seed), 2000)
            parser = tools.Hermes()
            found = parser.feed(text) + parser.end()
            assert all(isinstance(part, tools.CallDelta) for part in found), text
            assert parser.calls >= 1
            assert many or parser.calls == 1
            names = {part.name for part in found if isinstance(part, tools.CallDelta) and part.name}
            assert names <= {"weather", 'o"dd'}


def test_the_end() -> None:
    constraint = structured.Constraint(Grammar("choice", '["a"]'), TOKENS)
    assert not constraint.done
    assert np.flatnonzero(constraint.mask()).tolist() == [97]
    assert constraint.mask().shape == (TOKENS.vocab,)
    constraint.advance(97)
    assert constraint.done
    assert np.flatnonzero(constraint.mask()).tolist() == [EOS]
    constraint.advance(EOS)
    with pytest.raises(UsageError, match="left its grammar"):
        constraint.advance(98)


def test_a_token_against_the_mask_is_an_error() -> None:
    constraint = structured.Constraint(Grammar("regex", "a{5}"), TOKENS)
    with pytest.raises(UsageError, match="left its grammar"):
        constraint.advance(98)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json_schema", '{"type": "objec"}'), ("json_schema", "{"), ("json_schema", "[1]"), ("json_schema", '{"not": {}}'),
        ("json_schema", '{"$ref": "http://127.0.0.1:9/x"}'), ("json_schema", '{"type": "string", "pattern": "("}'),
        ("json_schema", '{"minimum": 5, "maximum": 1, "type": "integer"}'), ("json_schema", "[" * 100_000),
        ("regex", "("), ("regex", "[a"), ("lark", "start: x"), ("lark", "("), ("lark", ""), ("choice", "[]"), ("choice", "7"), ("choice", "[1]"),
    ],
)  # fmt: skip
def test_what_is_no_grammar_is_said(kind: str, text: str) -> None:
    with pytest.raises(UsageError, match="is not valid"):
        structured.check(Grammar(kind, text), TOKENS)  # type: ignore[arg-type]


def test_grammars_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = FakeTokens()
    compiler = structured._compiler(tokens)
    compiled = []
    plain = compiler._compile
    monkeypatch.setattr(compiler, "_compile", lambda grammar: compiled.append(grammar) or plain(grammar))
    one = Grammar("regex", "a{3}")
    first, second = structured.Constraint(one, tokens), structured.Constraint(Grammar("regex", "a{3}"), tokens)
    assert compiled == [one]
    first.advance(97)
    first.advance(97)
    first.advance(97)
    assert (first.done, second.done) == (True, False)  # they share no state
    monkeypatch.setattr(structured, "GRAMMARS", 3)
    for i in range(5):
        structured.check(Grammar("regex", f"b{{{i + 1}}}"), tokens)
    assert len(compiler._compiled) <= 4
    assert structured._compiler(FakeTokens()) is not compiler
