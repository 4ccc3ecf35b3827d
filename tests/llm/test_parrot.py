"""Parrot's policies: programs in turn, small batches for those who wait, groups and prefixes on one engine."""

from __future__ import annotations

import random

import numpy as np
import pytest

from nubes.drivers.sim.llm import Instance
from nubes.drivers.sim.llm.fleet import Hardware
from nubes.drivers.sim.llm.graphs import GraphsServed, Program, simulate_graphs
from nubes.llm.cluster.fleet import Fleet
from nubes.llm.cluster.member import Member, Report
from nubes.llm.cluster.seams import Ask
from nubes.llm.graphs.spec import Chain, Plan
from nubes.llm.models import step_model
from nubes.llm.policies.parrot import JOBS, TOKENS, Together, urgent
from nubes.llm.scheduling.invariants import check
from nubes.llm.scheduling.scheduler import Scheduler
from nubes.llm.scheduling.sequence import Sequence
from nubes.llm.spec import Criterion, Work


def sequence(
    id: int, criterion: Criterion | None, *, depth: int = 1, begun_s: float = 0.0, prompt: int = 32
) -> Sequence:
    work = None if criterion is None else Work(app="a", criterion=criterion, depth=depth, begun_s=begun_s)
    return Sequence(id, prompt, 64, arrived_s=float(id), work=work)


def admitted(*waiting: Sequence, ordering: str = "fcfs") -> list[int]:
    scheduler = Scheduler(4096, batching="parrot(budget=100000)", ordering=ordering)
    for one in waiting:
        scheduler.arrive(one, one.arrived_s)
    step = scheduler.compose(10.0)
    assert step is not None
    return [chunk.sequence.id for chunk in step.chunks]


# -- one engine -----------------------------------------------------------------------------------------------------


def test_the_deepest_call_of_the_oldest_program_goes_first() -> None:
    waiting = [
        sequence(1, "latency", begun_s=5.0), sequence(2, "latency", begun_s=1.0), sequence(3, "latency", depth=3, begun_s=9.0),
        sequence(4, None), sequence(5, "throughput", depth=2, begun_s=2.0),
    ]  # fmt: skip
    scheduler = Scheduler(64, ordering="parrot")
    for one in waiting:
        scheduler.arrive(one, 0.0)
    assert [one.id for one in scheduler.state.waiting] == [3, 5, 2, 4, 1]


@pytest.mark.parametrize(
    ("criteria", "count"),
    [(["throughput"] * 12, 12), (["latency"] * 12, JOBS), ([None] * 12, JOBS), (["tpot", *["throughput"] * 11], JOBS),
     ([*["throughput"] * 6, "ttft"], 6)],
)  # fmt: skip
def test_a_call_somebody_waits_for_bounds_the_batch(criteria: list[Criterion | None], count: int) -> None:
    assert len(admitted(*(sequence(n, of) for n, of in enumerate(criteria)))) == count


def test_tokens_are_bounded_too_but_one_runs_in_any_case() -> None:
    assert admitted(*(sequence(n, "latency", prompt=1500) for n in range(4))) == [0, 1]
    assert admitted(sequence(0, "latency", prompt=TOKENS + 1)) == [0]


# -- a fleet --------------------------------------------------------------------------------------------------------


class Router:
    """Together, on engines whose requests end when told to."""

    def __init__(self, engines: int) -> None:
        self.policy = Together()
        self.members = [Member(n, "both", Report(1000, 1000)) for n in range(engines)]
        self.count = 0

    def ask(
        self, criterion: Criterion, group: str = "", prefixes: tuple[tuple[str, int], ...] = (), known: int = 100
    ) -> Ask:
        self.count += 1
        work = Work(app="a", criterion=criterion, group=group, prefixes=prefixes)
        return Ask(self.count, known, known, 64, work=work)

    def place(self, *asks: Ask) -> list[int | None]:
        found: dict[int, int | None] = {}
        for ask in self.policy.line(asks, self.members, 0.0):
            member = self.policy.choose(ask, self.members, 0.0)
            found[ask.id] = None if member is None else member.number
            if member is not None:
                member.requests.add(ask.id)
        return [found[ask.id] for ask in asks]


def test_a_group_goes_to_one_engine_and_another_to_another() -> None:
    router = Router(3)
    places = router.place(*(router.ask("throughput", f"g{n % 2}") for n in range(12)))
    assert len(set(places[::2])) == len(set(places[1::2])) == 1
    assert places[0] != places[1]


def test_a_prompt_goes_where_its_prefix_is() -> None:
    router = Router(3)
    (first,) = router.place(router.ask("throughput", prefixes=(("p", 90),)))
    router.place(router.ask("throughput", known=10), router.ask("throughput", known=10))
    assert router.place(router.ask("throughput", prefixes=(("p", 90), ("q", 95)))) == [first]


def test_calls_somebody_waits_for_stay_together_and_apart_from_others() -> None:
    router = Router(3)
    (busy,) = {*router.place(*(router.ask("throughput", "g") for _ in range(8)))}
    places = router.place(*(router.ask("latency") for _ in range(2 * JOBS)))
    assert busy not in places
    assert sorted(map(places.count, set(places))) == [JOBS, JOBS]


def test_who_finds_no_place_waits_and_gets_one_in_the_end() -> None:
    router = Router(1)
    router.place(*(router.ask("throughput", "g") for _ in range(JOBS)))
    waits, more = router.ask("latency"), router.ask("throughput", "h")
    assert router.place(waits, more) == [None, None], "the engine is kept free of others"
    router.members[0].requests.pop()
    assert router.place(waits, more) == [0, None]


def test_bounds_hold_on_random_days() -> None:
    """And nobody waits for ever: what is there ends, and with it the waiting."""
    for seed in range(60):
        draw = random.Random(seed)
        router = Router(draw.randint(1, 4))
        waiting: list[Ask] = []
        asks: dict[int, Ask] = {}
        for step in range(200):
            if step < 120 and draw.random() < 0.6:
                criterion = draw.choice(("latency", "throughput", "throughput", "tpot"))
                group = f"g{draw.randint(0, 3)}" if criterion == "throughput" else ""
                ask = router.ask(criterion, group, ((f"p{draw.randint(0, 2)}", 64),), draw.randint(64, 3000))  # type: ignore[arg-type]
                asks[ask.id] = ask
                waiting.append(ask)
            places = router.place(*waiting)
            waiting = [ask for ask, place in zip(waiting, places, strict=True) if place is None]
            for member in router.members:
                here = [asks[id] for id in member.requests]
                if len(here) > 1 and any(urgent(ask.work) for ask in here):
                    assert len(here) <= JOBS
                    assert sum(ask.known for ask in here) <= TOKENS
                if here and (step >= 120 or draw.random() < 0.5):
                    member.requests.discard(draw.choice(sorted(member.requests)))
        assert not waiting


# -- programs in virtual time ---------------------------------------------------------------------------------------


def programs(seed: int) -> list[Program]:
    draw = random.Random(seed)
    made = []
    for _ in range(30):
        count = draw.randint(1, 6)
        chains = tuple(
            Chain(n, n, (), tuple(f"v{m}" for m in range(n) if draw.random() < 0.5), f"v{n}") for n in range(count)
        )
        plan = Plan(chains, {f"v{count - 1}": draw.choice(("latency", "throughput"))})
        sizes = tuple((draw.randint(10, 900), draw.randint(1, 60)) for _ in chains)
        made.append(Program(draw.uniform(0, 20), plan, sizes))
    return made


def serve(made: list[Program], **options: float | bool) -> GraphsServed:
    model = step_model("opt(opt-13b,tp=1)")

    def make(number: int) -> Instance:
        return Instance(Scheduler(400, ordering="parrot"), model)

    hardware = Hardware(make, roles=("both",) * 3, watch=lambda instance, now: check(instance.scheduler.state))
    return simulate_graphs(made, Fleet(routing="parrot"), hardware, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(5))
def test_programs_end_and_no_call_begins_before_what_it_needs(seed: int) -> None:
    found = serve(programs(seed), rtt_s=0.1)
    served = found.fleet.served
    assert not np.isnan(found.end_s).any()
    ended = {
        (int(at), found.programs[at].plan.chains[number].output): end
        for at, number, end in zip(found.program, found.chain, served.end_s, strict=True)
    }
    for at, number, arrived in zip(found.program, found.chain, served.arrived_s, strict=True):
        for name in found.programs[at].plan.chains[number].inputs:
            if not np.isnan(arrived):
                assert arrived >= ended[int(at), name] + 0.1 - 1e-9


def test_a_round_trip_for_every_hop_is_what_a_graph_saves() -> None:
    hops = tuple(Chain(n, n, (), (f"v{n - 1}",) if n else (), f"v{n}") for n in range(5))
    one = [Program(0.0, Plan(hops, {"v4": "latency"}), ((100, 10),) * 5)]
    assert serve(one, rtt_s=0.25).end_s[0] - serve(one).end_s[0] == pytest.approx(4 * 0.25)
