"""Tool calls in text: however it is cut into pieces, the same calls come out, and no text is lost."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nubes.llm.api.tools import CLOSE, OPEN, CallDelta, Hermes

CALL = OPEN + '\n{"name": "f", "arguments": {"a": "}\\"{", "b": [1, {"c": "</tool_call"}]}}\n' + CLOSE


def read(pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """Text, and calls with their arguments."""
    parser, text, calls = Hermes(), "", []
    for part in [one for piece in pieces for one in parser.feed(piece)] + parser.end():
        if isinstance(part, CallDelta):
            assert part.index == len(calls) - (part.name is None)
            if part.name is not None:
                calls.append((part.name, ""))
            calls[-1] = calls[-1][0], calls[-1][1] + part.arguments
        else:
            assert part
            text += part
    return text, calls


ARGUMENTS = '{"a": "}\\"{", "b": [1, {"c": "</tool_call"}]}'


@pytest.mark.parametrize(
    ("said", "text", "calls"),
    [
        ("no calls at all", "no calls at all", []),
        ("a < b <tool", "a < b <tool", []),
        (CALL, "", [("f", ARGUMENTS)]),
        (f"Well.\n{CALL}\n{CALL}\n", "Well.\n", [("f", ARGUMENTS)] * 2),
        (f"{CALL} and more", " and more", [("f", ARGUMENTS)]),
        (f"{OPEN}{{\"name\": \"f\"}}{CLOSE}", "", [("f", "{}")]),
        (f'{OPEN}{{"arguments": {{"a": 1}}, "name": "f"}}{CLOSE}', "", [("f", '{"a": 1}')]),
        (f'{OPEN}{{"name": "f", "parameters": {{}}}}{CLOSE}', "", [("f", "{}")]),
        (f'{OPEN}{{"name": "f", "arguments": "{{\\"a\\": 1}}"}}{CLOSE}', "", [("f", '{"a": 1}')]),
        (f'{OPEN}{{"name": "\\u00e4\\n", "arguments": {{}}}}{CLOSE}', "", [("ä\n", "{}")]),
        (f"{OPEN}not json{CLOSE}!", f"{OPEN}not json{CLOSE}!", []),
        (f"{OPEN}[1]{CLOSE}", f"{OPEN}[1]{CLOSE}", []),
        (f'{OPEN}{{"name": 7}}{CLOSE}', f'{OPEN}{{"name": 7}}{CLOSE}', []),
        (f"{OPEN}{{\"na", f"{OPEN}{{\"na", []),  # cut short before its name is known: text
        (f'{OPEN}{{"name": "f", "arguments": {{"a', "", [("f", '{"a')]),  # and after it: what there is
        (f'{OPEN}{{"name": "f", "arguments": {{}}}}', "", [("f", "{}")]),  # without an end
        (f'{OPEN}{{"name": "f"}}', "", [("f", "{}")]),
    ],
)  # fmt: skip
def test_calls_and_text(said: str, text: str, calls: list[tuple[str, str]]) -> None:
    assert read([said]) == (text, calls)
    assert read(list(said)) == (text, calls)
    for seed in range(50):
        rng = random.Random(seed)
        cuts = sorted(rng.sample(range(len(said) + 1), min(4, len(said))))
        pieces = [said[a:b] for a, b in zip([0, *cuts], [*cuts, len(said)], strict=True)]
        assert read(pieces) == (text, calls)


NAMES = st.text(min_size=1, max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.lists(st.tuples(NAMES, st.dictionaries(st.text(max_size=5), VALUES, max_size=3)), max_size=3), st.data())
def test_what_is_written_is_read(wanted: list[tuple[str, dict[str, object]]], data: st.DataObject) -> None:
    said = "\n".join(
        f"{OPEN}\n{json.dumps({'name': n, 'arguments': a}, ensure_ascii=False)}\n{CLOSE}" for n, a in wanted
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(said)), max_size=6)))
    pieces = [said[a:b] for a, b in zip([0, *cuts], [*cuts, len(said)], strict=True)]
    text, calls = read(pieces)
    assert text == ""
    assert [(name, json.loads(arguments)) for name, arguments in calls] == wanted


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [OPEN, CLOSE, "<", "tool_call>", "{", "}", '"name": "f"', ", ", '"arguments": ', '"', "\\", "x"]
        )
    )
)
def test_pieces_make_no_difference(parts: list[str]) -> None:
    said = "".join(parts)
    assert read(parts) == read([said]) == read(list(said))


def test_text_is_held_back_no_longer_than_needed() -> None:
    parser = Hermes()
    assert parser.feed("a <tool_c") == ["a "]
    assert parser.feed("ase") == ["<tool_case"]
    assert parser.feed(OPEN + '{"name": "f", "arg') == []
    assert parser.feed('uments": {"a') == [CallDelta(0, "f", ""), CallDelta(0, None, '{"a')]
