"""Results are read without running anybody's code."""

from __future__ import annotations

import datetime
import decimal
import json
import os
import pathlib
import pickle
from collections import Counter, deque
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nubes.drivers.local import payload
from nubes.gateway import plain


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch evil",)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [1, 2.5, None, True], "b": "ü"}, '{"a":[1,2.5,null,true],"b":"ü"}'),
        (np.arange(3), "[0,1,2]"),
        (np.eye(2, order="F"), "[[1.0,0.0],[0.0,1.0]]"),
        ({"x": np.float64(0.5), "y": np.int8(3), "z": np.bool_(True)}, '{"x":0.5,"y":3,"z":true}'),
        (float("inf"), "null"),
        (datetime.date(2026, 1, 2), '"2026-01-02"'),
        (decimal.Decimal("1.5"), '"1.5"'),
        (deque([1, 2]), "[1,2]"),
        (Counter("aab"), '{"a":2,"b":1}'),
        (range(3), "[0,1,2]"),
        (Fraction(1, 3), '"1/3"'),
        (pathlib.PurePosixPath("/a"), '"/a"'),
        (b"\x00\x01", '"AAE="'),
        ({1: "a"}, '{"1":"a"}'),
        ((1, (2,)), "[1,[2]]"),
    ],
)
def test_plain_data_becomes_json(value: Any, text: str) -> None:
    assert plain.to_json(payload.dumps(value, None)).decode() == text


def test_large_arrays_come_through_shared_memory_which_is_given_back(tmp_path: Path) -> None:
    output = payload.dumps(np.arange(50_000), payload.Segments(str(tmp_path)))
    assert len(list(tmp_path.iterdir())) == 1
    assert json.loads(plain.to_json(output)) == list(range(50_000))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [Evil(), [Evil()], print, os.system, {"f": len}, plain.NotPlain("x")])
def test_what_is_not_plain_is_refused_unread(value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(plain.NotPlain):
        plain.to_json(b"P" + pickle.dumps(value))
    assert not Path("evil").exists()


def test_values_without_words_in_json_are_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    for value in (complex(1, 2), loop, {(1, 2): 3}):
        with pytest.raises(plain.NotPlain):
            plain.to_json(payload.dumps(value, None))
