"""Fleets under random days: requests move, engines die, people hang up; nothing is lost, and all ends."""

from __future__ import annotations

import random

import numpy as np
import pytest

from nubes.drivers.sim.llm import Instance
from nubes.drivers.sim.llm.fleet import FleetServed, Hardware, simulate_fleet
from nubes.llm.cluster import events as e
from nubes.llm.cluster.fleet import LOST_OFTEN, Fleet
from nubes.llm.cluster.member import Member, Report, Role
from nubes.llm.cluster.seams import Ask, Migration, Move
from nubes.llm.models import step_model
from nubes.llm.scheduling.invariants import check
from nubes.llm.scheduling.scheduler import Scheduler
from nubes.workloads.llm import LLMWorkload

MODEL = step_model("opt(opt-13b,tp=1)")
WAYS = ["live", "copy", "recompute", "tokens"]


class Restless(Migration):
    """Moves anything anywhere."""

    last_blocks = 2

    def __init__(self, seed: int, ways: list[str]) -> None:
        self.draw = random.Random(seed)
        self.ways = ways
        self.period_s = 0.07

    def moves(self, members: list[Member], now: float) -> list[Move]:  # type: ignore[override]
        found = []
        for source in members:
            for running in source.report.sequences:
                if self.draw.random() < 0.2 and len(members) > 1:
                    target = self.draw.choice([m for m in members if m is not source])
                    found.append(Move(running.id, source.number, target.number, self.draw.choice(self.ways)))  # type: ignore[arg-type]
        return found


def requests(draw: random.Random, n: int) -> LLMWorkload:
    arrival = np.cumsum([draw.expovariate(8.0) for _ in range(n)])
    prompt = np.array([draw.randint(1, 200) for _ in range(n)])
    output = np.array([draw.randint(1, 120) for _ in range(n)])
    return LLMWorkload("random", "made up", arrival, prompt, output, float(arrival[-1]))


def day(
    seed: int, ways: list[str], roles: tuple[Role, ...], retention: str, renews: bool = False, **policies: str
) -> FleetServed:
    draw = random.Random(seed)
    workload = requests(draw, 70)
    made: list[Instance] = []

    def make(number: int) -> Instance:
        scheduler = Scheduler(
            draw.choice([24, 60, 200]), block_size=16, retention=retention, batching="sarathi(budget=64)"
        )
        made.append(Instance(scheduler, MODEL))
        return made[-1]

    dies = tuple((draw.uniform(0, 20), draw.randrange(len(roles))) for _ in range(draw.choice([0, 1])))
    if renews:
        dies = tuple((draw.uniform(2 * number, 2 * number + 2), number) for number in range(5))
    leaves = tuple((draw.uniform(0, 20), draw.randrange(70)) for _ in range(10))
    hardware = Hardware(
        make, roles, link=draw.choice([1e7, 1e9]), start_s=1.0, dies_s=dies, leaves_s=leaves,
        watch=lambda instance, now: check(instance.scheduler.state) if instance.steps % 7 == 0 else None,
    )  # fmt: skip
    fleet = Fleet(migration=Restless(seed, ways), renews=renews, **policies)
    outcome = simulate_fleet(workload, fleet, hardware)
    assert not fleet.asks
    assert not fleet.where
    assert not fleet.handovers
    assert not fleet.queue
    for number, instance in enumerate(made):
        if number in outcome.lost:
            continue
        state = instance.scheduler.state
        check(state)
        assert instance.scheduler.idle
        assert not state.moving
        assert not state.reserved, "blocks are kept for nobody"
        assert state.pool.used == 0
    for member in fleet.members.values():
        assert (member.sending, member.receiving, member.requests) == (0, 0, set())
    left = {id for _, id in leaves}
    never = {int(at) for at in np.flatnonzero(np.isnan(outcome.served.end_s))}
    assert len(never - left) <= outcome.refused
    return outcome


@pytest.mark.parametrize("way", [*WAYS, "all"])
@pytest.mark.parametrize("retention", ["lru", "none"])
def test_random_days(way: str, retention: str) -> None:
    moved = 0
    for seed in range(4):
        outcome = day(seed, WAYS if way == "all" else [way], ("both",) * (2 + seed % 2), retention)
        moved += outcome.moved
    assert moved > 20


@pytest.mark.parametrize("retention", ["lru", "none"])
def test_random_days_of_prompts_and_answers_apart(retention: str) -> None:
    moved = 0
    for seed in range(9):
        roles: tuple[Role, ...] = ("prefill", "decode", "decode", "prefill")[: 2 + seed % 3]
        moved += day(seed, ["live"], roles, retention, routing="distserve").moved
    assert moved > 20


def test_random_days_with_engines_that_come_back() -> None:
    """One after the other is lost."""
    for seed in range(6):
        roles: tuple[Role, ...] = ("prefill", "decode") if seed % 2 else ("both", "both")
        outcome = day(seed, ["live"], roles, "lru", renews=True)
        assert len(outcome.lost) > 2


def test_requests_wait_for_the_next_engine_and_end_if_it_does_not_come() -> None:
    fleet = Fleet(routing="round-robin", renews=True)
    fleet.handle(e.Joined(0, Report(10, 10), "both"), 0.0)
    assert fleet.handle(e.Asked(Ask(1, 4, 4, 8)), 0.0) == [e.Dispatch(1, 0)]
    assert fleet.handle(e.Lost(0, {1: 6}), 1.0) == [e.Start(1, "both")]
    assert fleet.asks[1].known == 6
    assert fleet.handle(e.Asked(Ask(2, 4, 4, 8)), 1.0) == []
    assert [type(command) for command in fleet.handle(e.Failed(), 2.0)] == [e.Refuse, e.Refuse]
    assert not fleet.asks


def test_a_request_that_takes_engines_along_ends() -> None:
    fleet = Fleet(routing="round-robin", renews=True)
    fleet.handle(e.Joined(0, Report(10, 10), "both"), 0.0)
    fleet.handle(e.Asked(Ask(1, 4, 4, 8)), 0.0)
    for number in range(2):
        assert fleet.handle(e.Lost(number, {1: 4}), 1.0) == [e.Start(number + 1, "both")]
        assert fleet.handle(e.Joined(number + 1, Report(10, 10), "both"), 1.0) == [e.Dispatch(1, number + 1)]
    assert fleet.handle(e.Lost(2, {1: 4}), 2.0) == [e.Refuse(1, LOST_OFTEN), e.Start(3, "both")]
    assert not fleet.asks
