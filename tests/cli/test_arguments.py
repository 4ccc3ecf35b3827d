"""Words on the command line as arguments of functions, and signatures read from source."""

from __future__ import annotations

import enum
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pytest

from nubes import signatures
from nubes.cli.arguments import loose, parse
from nubes.kernel.errors import UsageError


class Colour(enum.Enum):
    RED = 1


def plain(a, b=2, *rest, c=None, **more):
    """Untyped."""


def typed(
    n: int,
    x: float = 0.5,
    flag: bool = False,
    names: list[str] = [],  # noqa: B006
    where: Path | None = None,
    mode: Literal["a", "b"] = "a",
    maybe: int | None = None,
    colour: Colour = Colour.RED,
    when: datetime | None = None,
    table: dict[str, int] = {},  # noqa: B006
):
    """Typed."""


@pytest.mark.parametrize(
    ("function", "words", "args", "kwargs"),
    [
        (plain, ["1"], [1], {}),
        (plain, ["x", "7", "8", "--c", "z", "--other", "[1]"], ["x", 7, 8], {"c": "z", "other": [1]}),
        (plain, ["--a=-3"], [], {"a": -3}),
        (plain, ["-3", "4", "--", "-x", "--y"], [-3, 4, "-x", "--y"], {}),
        (typed, ["3"], [3], {}),
        (typed, ["-3", "1e3"], [-3, 1000.0], {}),
        (typed, ["--n", "3", "--flag", "--x=2"], [], {"n": 3, "flag": True, "x": 2.0}),
        (typed, ["3", "--no-flag"], [3], {"flag": False}),
        (typed, ["3", "--flag=true"], [3], {"flag": True}),
        (typed, ["3", "--names", "a", "--names", "b"], [3], {"names": ["a", "b"]}),
        (typed, ["3", "--names", '["a", "b"]'], [3], {"names": ["a", "b"]}),
        (typed, ["3", "--mode", "b", "--maybe", "4"], [3], {"mode": "b", "maybe": 4}),
        (typed, ["3", "--maybe", "null"], [3], {"maybe": None}),
        (typed, ["3", "--colour", "RED"], [3], {"colour": Colour.RED}),
        (typed, ["3", "--when", "2026-01-02T03:04:05"], [3], {"when": datetime(2026, 1, 2, 3, 4, 5)}),
        (typed, ["3", "--table", '{"a": 1}'], [3], {"table": {"a": 1}}),
    ],
)
def test_parse(function: Callable[..., Any], words: list[str], args: list[Any], kwargs: dict[str, Any]) -> None:
    assert parse(words, signatures.of(function), "f") == (args, kwargs)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "f needs --n."),
        (["x"], "n of f is 'x': expected int, got str."),
        (["3", "--n", "4"], "'n' is given twice to f."),
        (["3", "--mode", "c"], "mode of f is 'c'"),
        (["3", "--x"], "--x needs a value."),
        (["3", "--nmaes", "a"], "Did you mean --names?"),
        (["3", "--colour", "BLUE"], "colour of f is 'BLUE'"),
        (
            ["1", "2", "true", "[]", "w", "a", "1", "RED", "2026-01-01T00:00:00", "{}", "more"],
            "f has no place for 'more'.",
        ),
    ],
)
def test_what_does_not_fit_is_said(words: list[str], said: str) -> None:
    with pytest.raises(UsageError) as wrong:
        parse(words, signatures.of(typed), "f")
    assert said in str(wrong.value)


@pytest.mark.parametrize(
    ("words", "args", "kwargs"),
    [
        ([], [], {}),
        (['{"a": 1}'], [], {"a": 1}),
        (["[1, 2]"], [1, 2], {}),
        (["1", "two", "--x", "3", "--y=z"], [1, "two"], {"x": 3, "y": "z"}),
        (["{not json"], ["{not json"], {}),
    ],
)
def test_loose(words: list[str], args: list[Any], kwargs: dict[str, Any]) -> None:
    assert loose(words) == (args, kwargs)


def test_a_signature_read_from_source_is_the_live_one() -> None:
    for function in (plain, typed):
        read = signatures.read(__file__, function.__name__)
        live = signatures.of(function)
        assert read is not None
        assert read.about == live.about
        assert [(p.name, p.required, p.kind) for p in read.parameters] == [
            (p.name, p.required, p.kind) for p in live.parameters
        ]
        known = [(r.type, p.type) for r, p in zip(read.parameters, live.parameters, strict=True) if r.type is not Any]
        assert all(ours == theirs for ours, theirs in known)
    assert len([p for p in signatures.read(__file__, "typed").parameters if p.type is not Any]) == 8  # type: ignore[union-attr]


def test_methods_generators_and_what_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "m.py"
    file.write_text(
        "class A:\n    def f(self, x: 'int') -> list[int]:\n        yield x\n"
        "def g():\n    def inner():\n        yield 1\n    return inner\n"
        "h = lambda x: x\n"
    )
    method = signatures.read(str(file), "A.f")
    assert method is not None
    assert ([p.name for p in method.parameters], method.parameters[0].type, method.generator) == (["x"], int, True)
    assert method.returns == list[int]
    plain_one = signatures.read(str(file), "g")
    assert plain_one is not None
    assert not plain_one.generator
    assert signatures.read(str(file), "h") is None
    assert signatures.read(str(file), "nope") is None
    file.write_text("def (")
    assert signatures.read(str(file), "A.f") is None
    assert signatures.read(str(tmp_path / "gone.py"), "f") is None
