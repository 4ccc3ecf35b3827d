"""Several machines: where instances start, what happens when one drains, is lost, or has less to give."""

from __future__ import annotations

from nubes.functions import events as e

from .desk import GIB, Desk, spec


def two(*specs: object, **options: object) -> Desk:
    """A desk whose two machines have 1 CPU and 1 GiB each."""
    options = {"cpu": 1.0, "memory_bytes": GIB, "machines": 2, **options}
    return Desk(*specs, **options)  # type: ignore[arg-type]


def where(d: Desk) -> dict[int, int]:
    return {id: i.machine.id for id, i in d.c.instances.items()}


def test_instances_go_where_there_is_room() -> None:
    d = two(spec(cpu=1.0))
    for _ in range(3):
        d.call("f")
    assert sorted(where(d).values()) == [0, 1]
    assert [d.status(call) for call in (1, 2, 3)] == [e.PENDING] * 3
    assert [start.machine for start in d.of(e.StartInstance, d.all)] == [0, 1]


def test_a_call_takes_a_free_instance_on_a_machine_that_has_cpu() -> None:
    d = two(spec(cpu=1.0), spec("g", cpu=1.0))
    d.call("f"), d.call("f")
    d.ready()
    d.done(1), d.done(2)
    d.call("g")  # on machine 0, whose CPU it takes
    d.ready()
    d.call("f")
    (dispatched,) = d.of(e.Dispatch)
    assert d.c.instances[dispatched.instance].machine.id == 1


def test_where_no_free_instance_can_run_another_is_started_elsewhere() -> None:
    d = two(spec(cpu=1.0), spec("g", cpu=1.0), keep_alive="always-delayed")
    d.call("f")
    d.ready()
    d.done(1)  # idle on machine 0
    d.call("g")
    assert where(d) == {1: 0, 2: 0}  # an idle instance holds no CPU
    d.call("f")
    assert where(d) == {1: 0, 2: 0, 3: 1}


def test_what_is_too_large_for_each_machine_is_told_so() -> None:
    d = two(spec(cpu=1.5))
    call = d.call("f")
    assert d.status(call) == e.FAILED
    assert "the largest of 2 machines has 1 CPU" in d.reason(call)


def test_without_machines_calls_wait_for_one() -> None:
    d = two(spec(cpu=1.0), machines=1)
    d(e.MachineLost(0))
    call = d.call("f")
    assert d.status(call) == e.PENDING
    d(e.MachineReady(2.0, GIB, 7, "rack"))
    assert where(d) == {1: 7}


def test_a_draining_machine_ends_idle_instances_and_finishes_what_it_runs() -> None:
    d = two(spec(cpu=1.0), spec("g", cpu=1.0))
    busy = d.call("f")
    idle = d.call("g")
    d.ready()
    d.done(idle)
    machine = d.c.instances[d.c.calls[busy].instance].machine.id
    d(e.MachineDraining(1 - machine))
    assert [stop.reason for stop in d.of(e.StopInstance)] == ["its machine is to go"]
    assert d.of(e.Drained) == [e.Drained(1 - machine)]
    d(e.MachineDraining(machine))
    assert not d.of(e.Drained)
    waiting = d.call("f")
    assert d.status(waiting) == e.PENDING  # no machine takes it now
    d.done(busy)
    assert d.of(e.Drained) == [e.Drained(machine)]
    d(e.MachineReady(1.0, GIB, machine))  # it stays after all
    d.ready()
    assert d.status(waiting) == e.RUNNING


def test_what_stood_ready_on_a_draining_machine_stands_ready_elsewhere_first() -> None:
    d = two(spec(min_instances=1))
    (machine,) = where(d).values()
    d(e.MachineDraining(machine))
    kinds = [type(c) for c in d.last]
    assert kinds.index(e.StartInstance) < kinds.index(e.StopInstance)
    assert list(where(d).values()) == [1 - machine]


def test_calls_of_a_lost_machine_start_over_elsewhere() -> None:
    d = two(spec(cpu=1.0))
    kept, asked = d.call("f", keep=True, input=b"x"), d.call("f")
    d.ready()
    for round_ in range(5):  # more than a durable call may lose of single instances
        machine = d.c.instances[d.c.calls[kept].instance].machine.id
        d(e.MachineLost(machine, "its power failed"))
        d(e.MachineReady(1.0, GIB, 10 + round_))
        d.ready()
        assert d.status(kept) == e.RUNNING
        if asked in d.c.calls and d.status(asked) == e.RUNNING:
            d.done(asked)
    d.done(kept)
    assert d.status(kept) == e.SUCCEEDED


def test_a_plain_call_that_ran_on_a_lost_machine_gets_an_error() -> None:
    d = two(spec())
    call = d.call("f")
    d.ready()
    d(e.MachineLost(d.c.instances[1].machine.id, "its power failed"))
    assert d.status(call) == e.FAILED
    assert "its power failed" in d.reason(call)


def test_replicas_are_spread_and_a_shrunk_machine_gives_up_what_it_cannot_run() -> None:
    d = two(spec(min_instances=2, cpu=1.0))
    assert sorted(where(d).values()) == [0, 1]
    d.ready()
    d(e.MachineReady(0.5, GIB, 1))
    assert set(where(d).values()) == {0}
    d.ready()
    call, other = d.call("f"), d.call("f")
    assert (d.status(call), d.status(other)) == (e.RUNNING, e.PENDING)


def test_a_call_goes_where_its_input_lies() -> None:
    d = two(spec(concurrency=2, min_instances=2))
    d.ready()
    for machine in (0, 1, 0):
        d.call("f", near=((machine, 1 << 30),))
        (dispatched,) = d.of(e.Dispatch)
        assert d.c.instances[dispatched.instance].machine.id == machine


def test_parents_grow_on_every_machine_and_forks_stay_on_theirs() -> None:
    d = two(spec(), cold_start="seuss")
    grown = d.of(e.GrowNode, d.all)
    assert {grow.machine for grow in grown} == {0, 1}
    d.call("f")
    for node in list(d.c.tree.where):
        d(e.NodeReady(node, 0.1, 1))
    (start,) = d.of(e.StartInstance, d.all)
    assert d.c.tree.where[start.node].machine == start.machine
    d(e.MachineLost(1 - start.machine))
    assert {n.machine for n in d.c.tree.where.values()} == {start.machine}
