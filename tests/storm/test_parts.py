"""The parts of a storm that are plain functions: shrinking, names of calls, stores, schedules in files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nubes.drivers.local.store_operations import OPERATIONS
from nubes.drivers.local.tables import SqliteTables
from nubes.functions.events import INNER_CALLS
from nubes.kernel.errors import NubesError, UsageError
from nubes.storm import shrink, spec
from nubes.storm.spec import Fault, Schedule
from nubes.storm.stores import MemoryStores


@given(st.sets(st.integers(0, 5)), st.sets(st.integers(0, 5)))
def test_of_a_few_things_the_fewest_that_fail_are_found(one: set[int], other: set[int]) -> None:
    def fails(things: tuple[int, ...]) -> bool:
        return one <= set(things) or other <= set(things)

    found = shrink.fewest(tuple(range(6)), fails)
    assert len(found) == min(len(one), len(other))
    assert fails(found)


@given(st.sets(st.integers(0, 39), min_size=1, max_size=12))
def test_of_many_things_none_is_left_that_could_go(needed: set[int]) -> None:
    found = shrink.fewest(tuple(range(40)), lambda things: needed <= set(things))
    assert set(found) == needed


def test_faults_get_simpler_and_their_numbers_smaller() -> None:
    at = {"call": "2", "function": "f"}
    schedule = Schedule("day", 7, (Fault("machine", **at, after=3), Fault("delay", **at, attempt=2, seconds=30.0)))

    def fails(one: Schedule) -> bool:
        kills = [f for f in one.faults if f.kind in ("kill", "machine") and f.after >= 1]
        return bool(kills) and any(f.kind == "delay" and f.seconds >= 3 for f in one.faults)

    found = shrink.smallest(schedule, fails)
    assert found == Schedule("day", 0, (Fault("kill", **at, after=1), Fault("delay", **at, seconds=3.0)))


def test_the_path_of_a_call_leads_to_its_id() -> None:
    third = spec.child(0, 1, 3)
    assert spec.call_id("") == 0
    assert spec.call_id("3") == third
    assert spec.call_id("3/1") == spec.child(third, 1, 1)
    assert spec.call_id("3:2/1/4") == spec.child(spec.child(third, 2, 1), 1, 4)
    assert spec.call_id("@2/1") == spec.child(INNER_CALLS + 2, 1, 1)
    assert spec.beneath("3", 2, 1) == "3:2/1"
    assert spec.beneath("", 1, 3) == "3"
    with pytest.raises(UsageError):
        spec.call_id("the third")


def test_a_schedule_comes_back_from_its_file(tmp_path: Path) -> None:
    schedule = Schedule("day", 3, (Fault("clock", "1/2", "f", 2, 5, -60.0),), "holds", "It does not.")
    spec.save(schedule, tmp_path / "storm.json")
    assert spec.load(tmp_path / "storm.json") == schedule


@pytest.mark.parametrize("text", ["", "[]", '{"scenario": "day", "faults": [{"kind": "rain"}]}', '{"scenario": 1}'])
def test_what_is_no_schedule_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "storm.json").write_text(text)
    with pytest.raises(UsageError):
        spec.load(tmp_path / "storm.json")


KEYS = st.sampled_from([b"Pa", b"Pb", b"Pc"])
DICT = {"kind": "dict", "name": "d", "create": True, "max_items": 0}
QUEUE = {"kind": "queue", "name": "q", "create": True, "max_items": 3}
PARTITION = st.sampled_from(["", "other"])
STEPS = st.one_of(
    st.tuples(st.sampled_from(["dict_get", "dict_pop"]), st.fixed_dictionaries({"key": KEYS})),
    st.tuples(
        st.just("dict_put"),
        st.fixed_dictionaries({"pairs": st.lists(st.tuples(KEYS, KEYS), max_size=3), "skip": st.booleans()}),
    ),
    st.tuples(
        st.just("dict_items"), st.fixed_dictionaries({"what": st.sampled_from(["keys", "values", "items"])})
    ),
    st.tuples(st.sampled_from(["dict_len", "dict_clear", "store_delete"]), st.just({})),
    st.tuples(st.just("queue_take"), st.fixed_dictionaries({"count": st.integers(1, 3), "partition": PARTITION})),
    st.tuples(
        st.just("queue_append"),
        st.fixed_dictionaries({"values": st.lists(KEYS, min_size=1, max_size=4), "partition": PARTITION}),
    ),
    st.tuples(st.just("queue_items"), st.fixed_dictionaries({"partition": PARTITION})),
    st.tuples(
        st.sampled_from(["queue_len", "queue_clear"]),
        st.fixed_dictionaries({"partition": st.sampled_from(["", "other", None])}),
    ),
)  # fmt: skip


@given(st.lists(STEPS, max_size=25))
@settings(max_examples=60, deadline=None)
def test_stores_in_memory_answer_as_those_on_disk_do(tmp_path_factory: Any, steps: list[Any]) -> None:
    tables = SqliteTables(tmp_path_factory.mktemp("stores") / "stores.db")
    stores = MemoryStores()
    for operation, arguments in steps:
        arguments = {**(QUEUE if operation.startswith("queue") else DICT), **arguments}
        right: Any = tables.transact([(OPERATIONS[operation], arguments)])[0]
        try:
            got = stores.do(operation, arguments)
        except NubesError as error:
            assert str(error) == str(right)
            continue
        if operation == "queue_take":
            right = [value for _, value in right]
        assert got == right, operation
    tables.close()


def test_the_library_alone_does_not_bring_a_storm_along() -> None:
    import subprocess

    code = "import nubes, sys; nubes.App('a'); print([m for m in sys.modules if 'storm' in m or m == 'greenlet'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_example_in_the_documentation_is_the_app_that_is_tested() -> None:
    page = (Path(__file__).parents[2] / "docs" / "storm.md").read_text()
    app = (Path(__file__).parent / "apps" / "charge.py").read_text().split('"""\n', 1)[1].strip()
    assert f"```python\n{app}\n```" in page
