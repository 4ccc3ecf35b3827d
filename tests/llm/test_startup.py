"""Where models start: the knapsack by brute force, and random days on which no GPU is taken twice."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest

from nubes.drivers.sim.llm.startup import simulate_startup
from nubes.kernel.policy import make
from nubes.llm.cluster.startup import Checkpointed, Inference, Placement, Server, Startup, fewest
from nubes.workloads.llm import LLMWorkload

LINKS = {"memory": 20e9, "disk": 5e9, "remote": 1e9}


def test_the_cheapest_victims() -> None:
    draw = random.Random(0)
    for _ in range(300):
        costs = [(draw.uniform(0, 10), draw.randint(1, 3)) for _ in range(draw.randint(0, 6))]
        gpus = draw.randint(1, 6)
        sums = [
            sum(costs[at][0] for at in chosen)
            for n in range(len(costs) + 1)
            for chosen in combinations(range(len(costs)), n)
            if sum(costs[at][1] for at in chosen) >= gpus
        ]
        found = fewest(costs, gpus)
        if not sums:
            assert found is None
            continue
        assert found is not None
        assert found[0] == pytest.approx(min(sums))
        assert found[0] == pytest.approx(sum(costs[at][0] for at in found[1]))
        assert sum(costs[at][1] for at in found[1]) >= gpus


class Watched(Startup):
    """Checks what another policy says and sees."""

    def __init__(self, name: str) -> None:
        self.of: Startup = make("startup", name)
        self.keeps = self.of.keeps

    def choose(self, model: Checkpointed, servers: list[Server], now: float) -> Placement | None:  # type: ignore[override]
        for server in servers:
            assert server.free >= 0, "more runs than there are GPUs"
            assert sum(server.memory.values()) <= server.memory_bytes
            assert sum(server.disk.values()) <= server.disk_bytes
        running = [id for server in servers for id in server.running]
        assert len(running) == len(set(running)), "a request runs twice"
        placement = self.of.choose(model, servers, now)
        if placement is not None:
            server = servers[placement.server]
            freed = sum(server.running[id].model.gpus for id, _ in placement.victims)
            assert server.free + freed >= model.gpus
        return placement


@pytest.mark.parametrize("name", ["serverlessllm", "locality", "random", "remote"])
def test_random_days(name: str) -> None:
    moved = 0
    for seed in range(6):
        draw = random.Random(seed)
        n = 150
        at = np.cumsum([draw.expovariate(1.0) for _ in range(n)])
        prompt, output = (np.array([draw.randint(1, 400) for _ in range(n)]) for _ in range(2))
        work = LLMWorkload("random", "made up", at, prompt, output, float(at[-1]))
        models = [Checkpointed(k, draw.choice([5e9, 10e9, 40e9]), draw.choice([1, 1, 2])) for k in range(12)]
        servers = [Server(k, 4, 60e9, 150e9, LINKS) for k in range(3)]
        for model in models:
            servers[model.name % 3].keep(model)
        outcome = simulate_startup(work, models, [draw.randrange(12) for _ in range(n)], servers, Watched(name))
        assert not np.isnan(outcome.startup_s).any(), "somebody is never served"
        assert (outcome.startup_s > 0).all()
        assert not any(server.running for server in servers)
        moved += outcome.moved
    assert (moved > 0) == (name == "serverlessllm")


def test_what_runs_moves_where_that_is_cheaper() -> None:
    """The checkpoint is on server 0, whose GPU is taken by a model that server 1 has in memory."""
    wanted, other = Checkpointed(0, 10e9, 1), Checkpointed(1, 10e9, 1, usual_s=100.0)
    servers = [Server(k, 1, 1e12, 1e12, LINKS) for k in range(2)]
    servers[0].keep(wanted)
    servers[1].keep(other)
    servers[0].running[7] = Inference(7, other, 100, 0.0, 100.0)
    policy = make("startup", "serverlessllm")
    assert policy.choose(wanted, servers, 1.0) == Placement(0, ((7, 1),))
    servers[0].running[7].model = Checkpointed(2, 10e9, 1, usual_s=100.0)  # nobody has that one
    assert policy.choose(wanted, servers, 1.0) == Placement(1)
    servers[1].running[8] = Inference(8, other, 100, 0.0, 100.0)
    assert policy.choose(wanted, servers, 1.0) is None
    assert make("startup", "locality").choose(wanted, servers, 1.0) is None
