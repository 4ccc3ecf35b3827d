"""Task graphs in virtual time: queues, links and schedulers, worked out by hand."""

from __future__ import annotations

import pytest

from nubes.data.tasks.controller import Tasks
from nubes.data.tasks.models import Hardware, Work
from nubes.data.tasks.spec import Task
from nubes.drivers.sim.tasks import Simulation, simulate
from nubes.kernel.rng import rng

QUICK = Hardware(2, latency_s=0.0, local_decision_s=0.0, global_decision_s=0.0)


def test_an_input_crosses_the_link_once() -> None:
    simulation = Simulation(Tasks("locality-blind"), QUICK)
    simulation.put("x", 1, 125_000_000)
    for n in range(2):
        simulation.submit(Work(Task(str(n), "f", ("x",)), 0.0, 2, 0.5))
    simulation.run()
    assert simulation.done_s == {"0": 1.5, "1": 2.0}
    assert simulation.moved_bytes == 125_000_000


def test_a_task_goes_to_its_input() -> None:
    simulation = Simulation(Tasks("bottom-up"), QUICK)
    simulation.put("x", 1, 125_000_000)
    simulation.submit(Work(Task("0", "f", ("x",)), 0.0, 2, 0.5))
    simulation.run()
    assert simulation.done_s == {"0": 0.5}
    assert simulation.moved_bytes == 0


def test_two_transfers_share_a_link_in_turn() -> None:
    simulation = Simulation(Tasks("locality-blind"), QUICK)
    for name in "xy":
        simulation.put(name, 1, 125_000_000)
        simulation.submit(Work(Task(name * 2, "f", (name,)), 0.0, 2, 0.0))
    simulation.run()
    assert simulation.done_s == {"xx": 1.0, "yy": 2.0}


def test_a_central_scheduler_takes_one_decision_after_the_other() -> None:
    hardware = Hardware(4, latency_s=0.0, global_decision_s=1.0)
    works = [Work(Task(str(n), "f"), 0.0, 1, 0.0) for n in range(5)]
    assert simulate(works, hardware, "central").done_s == {str(n): n + 1.0 for n in range(5)}


def test_what_exceeds_the_threshold_spills_over() -> None:
    works = [Work(Task(str(n), "f"), 0.0, 1, 1.0) for n in range(8)]
    simulation = simulate(works, QUICK, "bottom-up(threshold=4)")
    assert max(simulation.done_s.values()) == 4.0  # four on each node
    assert max(simulate(works, QUICK, "bottom-up(threshold=8)").done_s.values()) == 8.0


@pytest.mark.parametrize("placement", ["bottom-up", "central", "random", "locality-blind"])
def test_everything_ends_whatever_is_lost(placement: str) -> None:
    for seed in range(20):
        draw = rng(seed, "lost")
        simulation = Simulation(Tasks(placement), Hardware(4))
        ids: list[str] = []
        for n in range(60):
            inputs = tuple(draw.sample(ids, min(len(ids), draw.randint(0, 3))))
            actor = draw.choice(["", "0"]) if n else "0"
            task = Task(str(n), "f", inputs if n else (), actor=actor)
            simulation.submit(Work(task, n * 0.01, draw.randint(1, 4), draw.uniform(0.0, 0.1), draw.randint(0, 10**7)))
            if n:
                ids.append(str(n))
        for node in (1, 2, 3):
            simulation.lose(draw.uniform(0.0, 1.5), node)
        for id in ids:
            simulation.want(2.0, id)
        simulation.run()
        assert simulation.available >= set(ids)
        assert not simulation.gone
