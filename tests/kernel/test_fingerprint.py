"""Equal states have one fingerprint wherever they are; different ones have different fingerprints."""

from __future__ import annotations

import copy
import pickle
import random
import subprocess
import sys
import threading
from collections import OrderedDict, deque
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nubes.functions.spec import FunctionSpec
from nubes.kernel.fingerprint import fingerprint

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.binary(max_size=5)
)
hashable = st.recursive(scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=4), max_leaves=6)
plain = st.recursive(
    hashable,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(hashable, inner, max_size=4) | st.sets(hashable, max_size=4)
    ),
    max_leaves=12,
)


class Colour(Enum):
    RED = 1
    BLUE = 2


class Value(msgspec.Struct, frozen=True):
    number: int


class Thing:
    def __init__(self, number: int) -> None:
        self.number = number


class Callable(Thing):
    def __call__(self) -> None: ...


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a: Any, b: Any) -> None:
        self.a, self.b = a, b


@given(plain)
def test_a_copy_has_the_same_fingerprint(state: Any) -> None:
    assert fingerprint(pickle.loads(pickle.dumps(state))) == fingerprint(copy.deepcopy(state)) == fingerprint(state)


@given(plain, plain)
def test_different_states_differ(one: Any, other: Any) -> None:
    same = repr(one) == repr(other)  # repr also tells 1 from True, and 0.0 from -0.0
    assert (fingerprint(one) == fingerprint(other)) >= same
    if one != other:
        assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (1, 1.0),
        ("1", b"1"),
        ([1, 2], (1, 2)),
        ([[1], [2]], [[1, 2]]),
        ({1: 2, 3: 4}, {3: 4, 1: 2}),
        (Thing(1), Thing(2)),
        (Thing(1), Callable(1)),
        (Callable(1), Callable(2)),
        (Slotted(1, [2]), Slotted(1, [3])),
        (Value(1), Value(2)),
        (Colour.RED, Colour.BLUE),
        (len, max),
        (deque([1, 2]), deque([2, 1])),
        (deque([1], maxlen=1), deque([1], maxlen=2)),
        (OrderedDict(a=1), {"a": 1}),
        (random.Random(1), random.Random(2)),
        (np.array([1.0, 2.0]), np.array([1.0, 3.0])),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (FunctionSpec(name="a/f"), FunctionSpec(name="a/f", cpu=2.0)),
    ],
)
def test_what_differs_in_one_thing_differs(one: Any, other: Any) -> None:
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one) == fingerprint(pickle.loads(pickle.dumps(one)))


def test_sets_do_not_depend_on_how_they_were_filled() -> None:
    words = [f"word {n}" for n in range(100)]
    assert fingerprint(set(words)) == fingerprint(set(reversed(words)))
    nested = [frozenset(words[n : n + 3]) for n in range(50)]
    assert fingerprint(set(nested)) == fingerprint(set(reversed(nested)))


def test_sharing_counts_for_what_can_change_only() -> None:
    shared = [1]
    assert fingerprint([shared, shared]) != fingerprint([[1], [1]])
    value = Value(1)
    assert fingerprint([value, value]) == fingerprint([Value(1), Value(1)])
    # Both specs share the default of `retries`; after a pickle, a new one does not.
    before, after = FunctionSpec(name="a/f"), FunctionSpec(name="a/g")
    assert fingerprint([pickle.loads(pickle.dumps(before)), after]) == fingerprint([before, after])


def test_cycles_end() -> None:
    def ring(number: int) -> Thing:
        thing = Thing(number)
        thing.self = {"again": (thing, [thing])}  # type: ignore[attr-defined]
        return thing

    assert fingerprint(ring(1)) == fingerprint(ring(1)) != fingerprint(ring(2))


@pytest.mark.parametrize("item", [threading.Lock(), (n for n in range(3)), open("/dev/null")])
def test_what_cannot_be_a_state_is_refused(item: Any) -> None:
    with pytest.raises(TypeError):
        fingerprint({"state": [item]})


STATE = """
from collections import deque
from nubes.functions.controller import Functions
from nubes.functions.events import Deployed, Submitted
from nubes.functions.spec import FunctionSpec
from nubes.kernel.fingerprint import fingerprint
c = Functions(cold_start="seuss")
c.handle(Deployed("a", 1, (FunctionSpec(name="a/f"), FunctionSpec(name="a/g", min_instances=2))), 1.0)
for call in range(20):
    c.handle(Submitted(call, "a/f", key=f"key {call % 7}"), 2.0)
words = {f"word {n}" for n in range(50)}
print(fingerprint([c, words, {frozenset((w, w + "!")) for w in words}, {"d": deque(sorted(words))}]))
"""


def test_another_process_with_another_hash_seed(tmp_path: Path) -> None:
    found = set()
    for seed in ("0", "1", "12345"):
        run = subprocess.run(
            [sys.executable, "-c", STATE], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        )
        found.add(run.stdout)
    assert len(found) == 1
    assert len(found.pop().strip()) == 64
