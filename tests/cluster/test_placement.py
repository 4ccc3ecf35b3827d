"""Placement policies: rules in strict order, on cases worked out by hand."""

from __future__ import annotations

import pytest

from nubes.cluster.seams import MachineView, Placement, Preference, Request, Validator
from nubes.kernel.policy import make, policies

GIB = 1 << 30


def machines(*used: float) -> list[MachineView]:
    """Machines of 4 CPU and 8 GiB, of which so many CPU are in use."""
    made = []
    for id, cpu in enumerate(used):
        machine = MachineView(id, 4.0, 8 * GIB)
        machine.cpu_used = cpu
        made.append(machine)
    return made


def choose(name: str, request: Request, among: list[MachineView]) -> int:
    chosen = make("placement", name).choose(request, among, 0.0)
    return chosen.id if chosen is not None else -1


@pytest.mark.parametrize(
    ("name", "right"),
    [("first-fit", 0), ("best-fit", 1), ("worst-fit", 2), ("balanced", 2), ("spread", 2), ("locality", 2)],
)
def test_by_load(name: str, right: int) -> None:
    assert choose(name, Request("f", 1.0, GIB), machines(1.0, 3.0, 0.0)) == right


def test_the_default_keeps_replicas_apart_then_looks_for_inputs_then_for_code() -> None:
    among = machines(2.0, 0.0, 0.0)
    among[0].count(Request("f", group="a"), 1)
    assert choose("balanced", Request("f", group="a"), among) == 1
    assert choose("balanced", Request("f", near=((2, GIB),)), among) == 2
    assert choose("balanced", Request("f", near=((2, 1000),)), among) == 1  # not worth a thought
    among[2].count(Request("f"), 1)
    assert choose("balanced", Request("f"), among) == 2
    assert choose("balanced", Request("g"), among) == 1


def test_locality_does_not_mind_load() -> None:
    among = machines(3.5, 0.0)
    among[0].count(Request("f"), 1)
    assert choose("locality", Request("f", 0.1), among) == 0
    assert choose("balanced", Request("f", 0.1), among) == 1


def test_a_later_preference_only_breaks_ties_and_validators_are_hard() -> None:
    class Odd(Placement):
        validators = (Validator("odd", (), lambda r, m: m.id % 2 == 1),)
        preferences = (
            Preference("first", (), lambda r, m: m.id // 4),
            Preference("second", (), lambda r, m: -m.id),
        )

    assert Odd().choose(Request("f"), machines(*[0.0] * 8), 0.0).id == 3  # type: ignore[union-attr]
    assert Odd().choose(Request("f"), machines(0.0), 0.0) is None


def test_counts_go_away_with_what_they_count() -> None:
    (machine,) = machines(0.0)
    machine.count(Request("f", group="g"), 2)
    assert (machine.holds, machine.groups) == ({"f": 2}, {"g": 2})
    frozen = machine.freeze()
    machine.count(Request("f", group="g"), -2)
    assert (machine.holds, machine.groups) == ({}, {})
    assert frozen.holds == {"f": 2}


@pytest.mark.parametrize("name", [p.name for p in policies("placement")])
def test_every_policy_chooses_one_of_those_it_is_given(name: str) -> None:
    among = machines(0.0, 1.0, 2.0)[1:]
    assert choose(name, Request("f", 0.5, GIB), among) in (1, 2)
