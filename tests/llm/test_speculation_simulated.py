"""Guessing ahead in virtual time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from nubes.drivers.sim.llm import Instance, Served, simulate_llm
from nubes.drivers.sim.llm.guessing import Guessing
from nubes.llm.scheduling.invariants import check
from nubes.llm.scheduling.load import Load
from nubes.llm.scheduling.scheduler import Scheduler
from nubes.llm.speculative.planner import expected
from nubes.papers.specinfer import TREE
from nubes.workloads.llm import LLMWorkload


@dataclass(frozen=True)
class Steady:
    """A step takes so long, and longer by the row."""

    step_s: float = 1.0
    row_s: float = 0.0
    name: str = "steady"
    kv_tokens: int = 4096
    kv_bytes: int = 1
    weight_bytes: int = 1
    gpu: str = "cpu"
    devices: int = 1
    stages: int = 1

    def seconds(self, load: Load) -> float:
        return self.step_s + self.row_s * load.rows

    def describe(self) -> str:
        return self.name


def simulated(
    speculation: str, batch: int, model: Steady, hits: list[list[float]], outputs: Sequence[int], blocks: int = 256
) -> tuple[Served, Guessing]:
    count = len(outputs)
    workload = LLMWorkload("few", "made", np.zeros(count), np.full(count, 10), np.array(outputs), 0.0)
    scheduler = Scheduler(blocks, batching=f"vllm(max_seqs={batch})", retention="none", speculation=speculation)
    guessing = Guessing(hits, 0.0, random.Random(0))
    instance = Instance(scheduler, model, guessing=guessing)
    served = simulate_llm(workload, [instance], watch=lambda instance, now: check(instance.scheduler.state))
    assert scheduler.idle
    assert scheduler.state.pool.used == 0
    return served, guessing


def test_guesses_that_always_hold_come_all_at_once() -> None:
    served, guessing = simulated("sequence(depth=4,fixed=true)", 2, Steady(), [[1.0]], [1, 2, 6, 11, 12])
    assert guessing.held == 4 + 8 + 8
    # A prompt's step is one second, two at a time; then five tokens a second, the first having come of the prompt.
    alone = [
        simulated("sequence(depth=4,fixed=true)", 1, Steady(), [[1.0]], [tokens])[0] for tokens in (1, 2, 6, 7, 11)
    ]
    assert [float(of.end_s[0]) for of in alone] == [1.0, 2.0, 2.0, 3.0, 3.0]
    assert served.gap_counts.sum() == sum(tokens - 1 for tokens in (1, 2, 6, 11, 12))


def test_everybody_gets_their_tokens_when_memory_is_short() -> None:
    outputs = [5 + 7 * n % 60 for n in range(60)]
    served, guessing = simulated("specinfer(widths=3x2x1)", 32, Steady(), [[0.5, 0.2, 0.1]], outputs, blocks=40)
    assert not np.isnan(served.end_s).any()
    assert served.preemptions > 5
    assert served.gap_counts.sum() == sum(outputs) - 60
    assert guessing.held / guessing.offered == pytest.approx(expected((3, 2, 1), [[0.5, 0.2, 0.1]] * 3) - 1, rel=0.15)


@pytest.mark.parametrize(("row_s", "batch"), [(0.0, 1), (0.0, 16), (0.02, 1), (0.05, 4), (0.05, 16), (1.0, 8)])
def test_the_planner_is_about_as_good_as_the_best_choice(row_s: float, batch: int) -> None:
    model, hits = Steady(1.0, row_s), [[0.6, 0.15, 0.05]]
    took = {
        text: simulated(text, batch, model, hits, [120] * 2 * batch)[0].seconds
        for text in ("off", "specinfer", "sequence(depth=2,fixed=true)", TREE, "specinfer(widths=2x1x1)")
    }
    assert took["specinfer"] < 1.1 * min(took.values()), took
