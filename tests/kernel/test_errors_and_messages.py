"""Errors travel whole; events and commands are read back as they were."""

from __future__ import annotations

import inspect
import pickle
from typing import Any, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nubes.functions import events as e
from nubes.functions.spec import Batching, FunctionSpec, Retries, Schedule
from nubes.kernel import errors
from nubes.kernel.errors import NubesError
from nubes.kernel.message import Codec, Command, Event

ALL = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, NubesError)]


@pytest.mark.parametrize("cls", ALL)
def test_errors_survive_a_pickle_and_say_what_to_do(cls: type[NubesError]) -> None:
    error = cls("It broke.", "Mend it.")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert (again.message, again.hint, str(again)) == ("It broke.", "Mend it.", "It broke. Mend it.")
    assert str(cls("It broke.")) == "It broke."
    assert 0 < cls.exit_code < 256


def of_type(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    simple = {
        int: st.integers(0, 2**63 - 1),
        float: st.floats(allow_nan=False),
        bool: st.booleans(),
        str: st.text(max_size=8),
        bytes: st.binary(max_size=8),
        tuple[str, ...]: st.lists(st.text(max_size=4), max_size=3).map(tuple),
        tuple[int, ...]: st.lists(st.integers(0, 2**63 - 1), max_size=3).map(tuple),
        tuple[float, ...]: st.lists(st.floats(allow_nan=False), max_size=3).map(tuple),
        tuple[tuple[int, int], ...]: st.lists(st.tuples(st.integers(0, 99), st.integers(0, 2**63 - 1))).map(tuple),
        tuple[str, str | int]: st.tuples(st.text(max_size=4), st.integers(0, 2**63 - 1) | st.text(max_size=4)),
        tuple[FunctionSpec, ...]: st.lists(specs, max_size=2).map(tuple),
    }
    return simple[kind]


specs = st.builds(
    FunctionSpec,
    name=st.text(max_size=5),
    cpu=st.floats(0, 64),
    retries=st.builds(Retries, max_retries=st.integers(0, 9)),
    batching=st.none() | st.builds(Batching, st.integers(1, 9), st.floats(0, 9)),
    schedule=st.none() | st.builds(Schedule, cron=st.text(max_size=5)),
    env=st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
)


@given(st.data(), st.floats(0, 1e12))
@pytest.mark.parametrize("kind", e.EVENTS)
def test_every_event_is_read_back_as_it_was(kind: type[Event], data: st.DataObject, now: float) -> None:
    hints = get_type_hints(kind)
    event = kind(**{name: data.draw(of_type(hints[name])) for name in kind.__struct_fields__})
    codec = Codec(e.EVENTS)
    assert codec.decode(codec.encode(now, event)) == (now, event)


def test_every_event_has_a_place_in_the_codec() -> None:
    kinds = [cls for _, cls in inspect.getmembers(e, inspect.isclass) if cls.__module__ == e.__name__]
    assert {cls for cls in kinds if issubclass(cls, Event)} == set(e.EVENTS)
    assert all(issubclass(cls, (Event, Command)) for cls in kinds)


def test_older_records_without_newer_fields_are_read() -> None:
    record = msgspec.msgpack.encode((1.0, ["Submitted", 7, "a/f"]))
    assert Codec(e.EVENTS).decode(record) == (1.0, e.Submitted(7, "a/f"))


def test_events_and_commands_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        e.Submitted(1, "a/f").call = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        e.Resolve(1, e.SUCCEEDED).call = 2  # type: ignore[misc]
