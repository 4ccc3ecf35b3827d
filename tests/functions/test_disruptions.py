"""Deployments and drains with task control: what is to go goes when its function can bear it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nubes.functions import events as e
from nubes.functions.deployments import verify
from nubes.kernel.errors import UsageError

from .desk import GIB, Desk, spec


def up(d: Desk) -> int:
    """Instances that may be given calls now, or run some."""
    return sum(i.ready and not i.leaving for i in d.c.instances.values())


def three(**options: object) -> Desk:
    options = {"min_instances": 3, "disruption": "quorum(up=3)", **options}
    d = Desk(spec(**options), cpu=8.0, memory_bytes=GIB, machines=2)  # type: ignore[arg-type]
    d.ready()
    assert up(d) == 3
    return d


def versions(d: Desk) -> list[int]:
    return sorted(i.version for i in d.c.instances.values())


def test_without_a_policy_a_deployment_takes_all_idle_instances_at_once() -> None:
    d = three(disruption="")
    d.deploy(spec(min_instances=3))
    assert up(d) == 0
    assert len(d.of(e.StopInstance)) == 3


def test_a_deployment_goes_instance_by_instance_if_none_can_be_spared() -> None:
    d = three()
    d.deploy(spec(min_instances=3, disruption="quorum(up=3)"))
    seen = [versions(d)]
    while d.starting():
        assert up(d) == 3
        d.ready()
        assert up(d) == 3
        seen.append(versions(d))
    assert seen == [[1, 1, 1, 2], [1, 1, 2, 2], [1, 2, 2, 2], [2, 2, 2]]


def test_calls_are_answered_by_the_old_version_meanwhile() -> None:
    d = three()
    d.deploy(spec(min_instances=3, disruption="quorum(up=3)"))
    call = d.call("f")
    assert d.status(call) == e.RUNNING
    assert d.c.instances[d.c.calls[call].instance].version == 1


def test_a_busy_instance_ends_after_its_call() -> None:
    d = three(disruption="quorum(up=1)")
    calls = [d.call("f") for _ in range(3)]
    d.deploy(spec(min_instances=3, disruption="quorum(up=1)"))
    assert not d.of(e.StopInstance)
    assert [i.leaving for i in d.c.instances.values() if i.ready] == [True, True, False]
    d.done(next(call for call in calls if d.c.instances[d.c.calls[call].instance].leaving))
    assert [stop.reason for stop in d.of(e.StopInstance)] == ["a newer version is deployed"]
    d.done(d.running()[0]), d.done(d.running()[0])
    assert versions(d) == [1, 2, 2, 2]
    assert d.status(d.call("f")) == e.RUNNING  # one of the old still takes calls, as no new one is ready


def test_a_version_that_does_not_start_never_takes_the_old_one_down() -> None:
    d = three()
    d.deploy(spec(min_instances=3, disruption="quorum(up=3)"))
    for _ in range(20):
        for instance in d.starting():
            d(e.InstanceLost(instance, "it failed to start", b"broken"), after=1.0)
    assert versions(d) == [1, 1, 1] or versions(d) == [1, 1, 1, 2]
    assert up(d) == 3
    assert d.status(d.call("f")) == e.RUNNING


def test_a_drain_starts_what_it_takes_away_elsewhere_first() -> None:
    d = three()
    machine = next(m for m in d.c.machines.values() if m.instances)
    d(e.MachineDraining(machine.id))
    while d.starting():
        assert up(d) == 3
        assert not d.of(e.Drained, d.all)
        d.ready()
    assert up(d) == 3
    assert not machine.instances
    assert d.of(e.Drained, d.all) == [e.Drained(machine.id)]


def test_a_drain_waits_for_room_but_not_beyond_its_deadline() -> None:
    d = Desk(spec(min_instances=2, disruption="quorum(up=2)"), cpu=8.0, memory_bytes=GIB, machines=1)
    d.ready()
    d(e.MachineDraining(0, within_s=60.0))
    assert not d.of(e.StopInstance)
    (wake,) = [timer for timer in d.of(e.SetTimer) if timer.key[0] == "disruption"]
    assert wake.at == d.now + 60.0
    d.timer(*wake.key, after=60.0)
    assert len(d.of(e.StopInstance)) == 2
    assert d.of(e.Drained) == [e.Drained(0)]


def test_a_drain_that_is_undone_ends_nothing_more() -> None:
    d = Desk(spec(min_instances=2, disruption="quorum(up=2)"), cpu=8.0, memory_bytes=GIB, machines=1)
    d.ready()
    d(e.MachineDraining(0, within_s=60.0))
    (wake,) = [timer for timer in d.of(e.SetTimer) if timer.key[0] == "disruption"]
    d(e.MachineReady(8.0, GIB, 0), after=10.0)
    d.timer(*wake.key, after=50.0)
    assert up(d) == 2
    assert not d.of(e.StopInstance, d.all)


def test_a_lost_instance_counts_as_down() -> None:
    d = three(disruption="quorum(up=2)")
    d.deploy(spec(min_instances=3, disruption="quorum(up=2)"))
    stopped = len(d.of(e.StopInstance))
    assert stopped == 1
    lost = next(i.id for i in d.c.instances.values() if i.ready)
    d(e.InstanceLost(lost, "killed"))
    assert up(d) == 1
    assert not d.of(e.StopInstance)  # below two by accident: nothing more is taken


def test_the_cloud_s_policy_is_for_functions_it_fits() -> None:
    d = Desk(
        spec("kept", min_instances=2), spec("free"), spec("few", min_instances=1), cpu=8.0, disruption="quorum(up=2)"
    )
    assert [d.c.functions[f"a/{name}"].control is not None for name in ("kept", "free", "few")] == [True, False, False]
    d.ready()
    d(e.PolicySet("disruption", "at-once"))
    assert all(f.control is None for f in d.c.functions.values())


def test_a_policy_that_is_switched_off_lets_go_what_waits() -> None:
    d = Desk(spec(min_instances=2), cpu=8.0, memory_bytes=GIB, machines=1, disruption="quorum(up=2)")
    d.ready()
    d(e.MachineDraining(0))
    assert up(d) == 2
    d(e.PolicySet("disruption", "at-once"))
    assert up(d) == 0
    assert d.of(e.Drained) == [e.Drained(0)]


def test_an_application_that_is_asked_decides() -> None:
    asked = spec(kind="class", methods=("may_go",), min_instances=3, disruption="app")
    d = Desk(asked, cpu=8.0, memory_bytes=GIB, machines=1)
    d.ready()
    d(e.MachineDraining(0))
    (ask,) = d.of(e.AskDisruption)
    assert (ask.function, ask.method, [one.kind for one in ask.pending]) == ("a/f", "may_go", ["move"] * 3)
    assert not d.of(e.StopInstance)
    d(e.DisruptionAnswered("a/f", ask.offer - 1, (ask.pending[0].id,)))  # to an older question
    assert not d.of(e.StopInstance)
    d(e.DisruptionAnswered("a/f", ask.offer, (ask.pending[1].id, 77)))
    assert [stop.instance for stop in d.of(e.StopInstance)] == [ask.pending[1].id]
    (again,) = d.of(e.AskDisruption)  # as something changed
    d(e.DisruptionAnswered("a/f", again.offer, ()))
    (wake,) = [timer for timer in d.of(e.SetTimer, d.all) if timer.key[0] == "disruption"]
    d.timer(*wake.key, after=wake.at - d.now)
    assert len(d.of(e.AskDisruption)) == 1  # and again, after a while


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"disruption": "quorum"}, "asks for no instances"),
        ({"disruption": "quorum(up=3)", "min_instances": 2, "max_instances": 2}, "of 2 instances it lets none go"),
        ({"disruption": "quorum(up=4)", "min_instances": 3}, "of 4 instances it lets none go"),
        ({"disruption": "shards", "min_instances": 2}, "hold no shards"),
        ({"disruption": "app", "min_instances": 2}, "no method 'may_go'"),
    ],
)
def test_what_would_never_let_go_is_refused(options: dict[str, object], why: str) -> None:
    with pytest.raises(UsageError, match=why.replace("(", r"\(")):
        verify(spec(**options))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_a_quorum_is_kept_through_deployments_and_drains(seed: int, instances: int, least: int, busy: bool) -> None:
    """Whatever is asked of it, what nubes itself takes away never leaves fewer than `up`."""
    r = random.Random(seed)
    least = min(least, instances)
    options = {"min_instances": instances, "disruption": f"quorum(up={least})"}
    d = Desk(spec(**options), cpu=8.0, memory_bytes=GIB, machines=3)
    d.ready()
    for _ in range(40):
        before = up(d)
        kind = r.choice(["deploy", "drain", "back", "ready", "ready", "ready", "call", "done", "lost"])
        if kind == "deploy":
            d.deploy(spec(**options))
        elif kind == "drain":
            d(e.MachineDraining(r.randrange(3)))
        elif kind == "back":
            d(e.MachineReady(8.0, GIB, r.randrange(3)))
        elif kind == "ready" and d.starting():
            d.ready(d.starting()[0])
        elif kind == "call" and busy:
            d.call("f")
        elif kind == "done" and d.running():
            d.done(d.running()[0])
        elif kind == "lost" and d.c.instances and r.random() < 0.3:
            d(e.InstanceLost(r.choice(list(d.c.instances)), "killed"))
            before -= 1
        assert up(d) >= min(before, least), kind
    for machine in range(3):
        d(e.MachineReady(8.0, GIB, machine))
    for _ in range(40):
        if d.starting():
            d.ready()
        elif d.running():
            d.done(d.running()[0])
    assert versions(d) == [d.version] * len(d.c.instances)
    assert len(d.c.instances) >= instances
