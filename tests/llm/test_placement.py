"""Queues in formulas against brute force, and the search for plans against every plan there is."""

from __future__ import annotations

import random
from itertools import product
from math import inf

import pytest

from nubes.kernel.errors import UsageError
from nubes.llm.cluster.placement import (
    Parallel,
    Plan,
    advise,
    apart,
    apart_in_node,
    pipeline_ttft_s,
    queued_ttft_s,
    tensor_ttft_s,
    together,
)

SPACE = [Parallel(1), Parallel(2), Parallel(4), Parallel(2, 2), Parallel(8)]


def queue(rate: float, service_s: float, stages: int, count: int = 60_000) -> float:
    """The mean time to the first token, by playing it through."""
    draw, now, free, total = random.Random(1), 0.0, 0.0, 0.0
    for _ in range(count):
        now += draw.expovariate(rate)
        begin = max(now, free)
        free = begin + service_s / stages
        total += begin + service_s - now
    return total / count


@pytest.mark.parametrize("busy", [0.1, 0.5, 0.8])
def test_queues(busy: float) -> None:
    service_s = 0.07
    assert queued_ttft_s(busy / service_s, service_s) == pytest.approx(queue(busy / service_s, service_s, 1), rel=0.06)
    rate = 2 * busy / service_s
    assert pipeline_ttft_s(rate, service_s) == pytest.approx(queue(rate, service_s, 2), rel=0.06)
    assert tensor_ttft_s(rate, service_s, 2.0) == pytest.approx(queue(rate, service_s / 2, 1), rel=0.06)


def test_tensor_parallelism_wins_at_low_rates_and_pipelines_at_high_ones() -> None:
    assert tensor_ttft_s(0.1, 0.1, 1.6) < pipeline_ttft_s(0.1, 0.1)
    assert tensor_ttft_s(15.0, 0.1, 1.6) > pipeline_ttft_s(15.0, 0.1)
    assert queued_ttft_s(10.0, 0.1) == inf


@pytest.mark.parametrize("seed", range(20))
def test_plans_are_the_best_there_are(seed: int) -> None:
    draw = random.Random(seed)
    prefill = {p: draw.uniform(1, 10) for p in SPACE}
    decode = {p: draw.uniform(1, 10) for p in SPACE}
    rate = draw.uniform(1, 50)
    plan = apart(rate, SPACE, prefill.__getitem__, decode.__getitem__)
    assert plan.decode is not None
    assert prefill[plan.prefill] / plan.prefill.devices == max(prefill[p] / p.devices for p in SPACE)
    assert decode[plan.decode] / plan.decode.devices == max(decode[p] / p.devices for p in SPACE)
    assert plan.prefills * prefill[plan.prefill] >= rate > (plan.prefills - 1) * prefill[plan.prefill]
    assert plan.decodes * decode[plan.decode] >= rate > (plan.decodes - 1) * decode[plan.decode]
    near = apart_in_node(rate, SPACE, 8, prefill.__getitem__, decode.__getitem__)
    assert near.decode is not None
    allowed = [(p, d) for p, d in product(SPACE, SPACE) if p.pp == d.pp and p.tp + d.tp <= 8]
    assert (near.prefill, near.decode) in allowed
    for p, d in allowed:
        n, m = -(-rate // prefill[p]), -(-rate // decode[d])
        sustained = min(n * prefill[p], m * decode[d]) / (n * p.devices + m * d.devices)
        assert near.per_device >= sustained - 1e-9


def test_the_advice_is_what_serves_more() -> None:
    joint = together(8.0, SPACE, lambda p: 4.0 * p.devices)
    assert (joint.prefills, joint.decode, joint.per_device) == (2, None, 4.0)
    split = Plan(Parallel(1), 1, Parallel(2), 1, 3.9)
    assert advise(split, joint) is joint
    assert joint.words.startswith("together")
    assert split.devices == 3
    with pytest.raises(UsageError):
        together(1.0, [], lambda p: 1.0)
