"""Entitlements over shared machines, and the profiles that machines are given on their way."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nubes.cluster.entitlements import FREE, Entitlement, Region
from nubes.cluster.policies.protean import vms
from nubes.cluster.profiles import (
    ApplySettings,
    Broken,
    CheckHost,
    Done,
    DrainHost,
    Host,
    Profile,
    Ready,
    RestartHost,
    Switch,
)
from nubes.cluster.seams import MachineView, Request
from nubes.kernel.errors import UsageError
from nubes.kernel.rng import rng

GIB = 1 << 30
ONE = Request("task", 1.0, GIB)


def region(machines: int = 3, **quotas: float) -> Region:
    made = Region([Entitlement(name, cpu, 1000 * GIB) for name, cpu in quotas.items()], vms, rng(0, "test"))
    for id in range(machines):
        made.join(MachineView(id, 2.0, 8 * GIB, zone="rack"))
    return made


def bound(r: Region) -> dict[int, str]:
    return {id: m.zone for id, m in sorted(r.inventory.machines.items())}


def test_machines_are_bound_as_they_are_needed_and_go_back() -> None:
    r = region(a=4.0, b=4.0)
    assert set(bound(r).values()) == {FREE}
    first = r.place(1, "a", ONE)
    assert r.place(2, "a", ONE) == first  # beside it: no other machine is needed
    other = r.place(3, "b", ONE)
    assert other != first
    assert sorted(bound(r).values()) == ["", "a", "b"]
    r.leave(1)
    r.leave(2)
    assert sorted(bound(r).values()) == ["", "", "b"]
    assert r.bindings == 2


def test_no_entitlement_goes_over_its_quota_and_none_takes_anothers_machines() -> None:
    r = region(a=2.0, b=6.0)
    assert [r.place(i, "a", ONE) is not None for i in range(3)] == [True, True, False]
    assert [r.place(10 + i, "b", ONE) is not None for i in range(5)] == [True] * 4 + [False]


def test_what_a_lost_machine_ran_can_be_placed_anew() -> None:
    r = region(machines=2, a=4.0)
    machine = r.place(1, "a", ONE)
    assert machine is not None
    (lost,) = r.lose(machine)
    assert (lost.id, lost.request) == (1, ONE)
    assert r.place(lost.id, lost.entitlement, lost.request) == 1 - machine


def test_the_rebalancer_empties_what_is_little_used() -> None:
    r = region(a=6.0)
    for i in range(6):
        r.place(i, "a", ONE)
    by_machine = {m: sorted(ids) for m, ids in r.on.items()}
    for ids in by_machine.values():
        r.leave(ids[0])
    assert list(bound(r).values()) == ["a"] * 3
    assert r.rebalance(0) == []
    (move,) = r.rebalance(5)
    assert r.containers[move.container].machine == move.target
    assert sorted(bound(r).values()) == ["", "a", "a"]
    assert r.rebalance(5) == []


def test_a_machine_in_use_is_not_bound_elsewhere() -> None:
    r = region(a=4.0)
    machine = r.place(1, "a", ONE)
    assert machine is not None
    with pytest.raises(UsageError, match="in use"):
        r.bind(machine, FREE)


@settings(deadline=None, max_examples=80)
@given(
    st.lists(
        st.tuples(st.sampled_from(["place", "place", "leave", "balance", "lose"]), st.integers(0, 99)), max_size=50
    )
)
def test_books_are_right_whatever_happens(moves: list[tuple[str, int]]) -> None:
    r = region(machines=5, a=3.0, b=5.0)
    for number, (move, which) in enumerate(moves):
        ids = sorted(r.containers)
        if move == "place":
            r.place(number, "ab"[which % 2], Request("task", (0.5, 1.0, 1.5)[which % 3], GIB))
        elif move == "leave" and ids:
            r.leave(ids[which % len(ids)])
        elif move == "balance":
            before = set(r.containers)
            assert len(r.rebalance(which % 5)) <= which % 5
            assert set(r.containers) == before
        elif move == "lose" and len(r.on) > 2:
            r.lose(sorted(r.on)[which % len(r.on)])
        for m in r.inventory.machines.values():
            here = [r.containers[id] for id in r.on[m.id]]
            assert m.cpu_used == sum(c.request.cpu for c in here) <= m.cpu
            assert {c.entitlement for c in here} <= {m.zone}
            assert bool(here) == (m.zone != FREE)
        for name, used in r.used.items():
            assert used.cpu_used == sum(c.request.cpu for c in r.containers.values() if c.entitlement == name)
            assert used.cpu_used <= r.entitlements[name].cpu


WEB = Profile("web", {"huge_pages": "on", "governor": "performance"}, frozenset({"huge_pages"}))
DATA = Profile("data", {"governor": "powersave"})


def test_a_machine_is_drained_set_up_restarted_and_checked() -> None:
    host = Host()
    assert host.handle(Switch(WEB), 0.0) == [DrainHost()]
    assert not host.usable
    assert host.handle(Done(), 1.0) == [ApplySettings({"governor": "performance", "huge_pages": "on"})]
    assert host.handle(Done(), 2.0) == [RestartHost()]
    assert host.handle(Done(), 3.0) == [CheckHost(WEB.settings)]
    assert host.handle(Done(), 4.0) == [Ready("web")]
    assert host.usable
    assert host.handle(Switch(WEB), 5.0) == [Ready("web")]
    assert host.handle(Done(), 5.0) == []


def test_what_the_next_profile_does_not_name_is_undone_and_a_restart_only_made_where_needed() -> None:
    host = Host()
    host.profile = Profile("before", {"governor": "performance"})
    host.handle(Switch(DATA), 0.0)
    assert host.handle(Done(), 0.0) == [ApplySettings({"governor": "powersave"})]
    assert host.handle(Done(), 0.0) == [CheckHost(DATA.settings)]
    host.handle(Done(), 0.0)
    host.profile = WEB
    host.handle(Switch(DATA), 0.0)
    assert host.handle(Done(), 0.0) == [ApplySettings({"governor": "powersave", "huge_pages": ""})]
    assert host.handle(Done(), 0.0) == [RestartHost()]


def test_a_profile_that_is_wanted_meanwhile_comes_after() -> None:
    host = Host()
    host.handle(Switch(WEB), 0.0)
    assert host.handle(Switch(DATA), 0.0) == []
    host.handle(Done(), 0.0), host.handle(Done(), 0.0), host.handle(Done(), 0.0)
    assert host.handle(Done(), 0.0) == [ApplySettings({"governor": "powersave", "huge_pages": ""})]
    host.handle(Done(), 0.0), host.handle(Done(), 0.0)
    assert host.handle(Done(), 0.0) == [Ready("data")]


def test_after_failures_a_machine_takes_no_work_and_its_settings_are_all_made_anew() -> None:
    host = Host(attempts=2)
    host.handle(Switch(DATA), 0.0)
    host.handle(Done(), 0.0)
    assert host.handle(Done(False, "no such setting"), 0.0) == [ApplySettings(DATA.settings)]
    assert host.handle(Done(False, "no such setting"), 0.0) == [Broken("no such setting")]
    assert not host.usable
    assert host.handle(Switch(Profile("")), 0.0) == [DrainHost()]
    assert host.handle(Done(), 0.0) == [ApplySettings({"governor": ""})]
