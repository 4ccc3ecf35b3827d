"""What calls are wanted for, and the order in which the manager runs them."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nubes.llm.graphs import LATENCY, THROUGHPUT, TTFT
from nubes.llm.graphs.deduction import deduce, depths
from nubes.llm.graphs.manager import Manager
from nubes.llm.graphs.spec import Chain, Plan


def chains(*needs: str) -> tuple[Chain, ...]:
    """Chain n makes the n-th letter of the alphabet from the letters in needs[n]."""
    return tuple(Chain(n, n, (), tuple(of), chr(ord("a") + n)) for n, of in enumerate(needs))


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
