"""Plans: the cheapest configuration that keeps an objective."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec
import pytest

from nubes.kernel.errors import UsageError
from nubes.replay.llm import Configuration, replay_llm, slo
from nubes.replay.llm.plan import Plan, frontier, plan_llm
from nubes.replay.llm.plan_shown import answer, html, reasons, table
from nubes.workloads.llm import LLMWorkload, load_llm

OBJECTIVE = slo("ttft=1s,tpot=100ms")
POLICIES = ("vllm", "sarathi(budget=512)")


@pytest.fixture(scope="module")
def workload() -> LLMWorkload:
    return load_llm("code-like(rate=12,length=15s,limit=2048)")


@pytest.fixture(scope="module")
def plan(workload: LLMWorkload) -> Plan:
    return made(workload)


def made(workload: LLMWorkload, policies: Sequence[str] = POLICIES, **options: object) -> Plan:
    options.setdefault("gpus", ("a100", "a10"))
    return plan_llm(workload, "opt-13b", OBJECTIVE, tensor=(1,), pipeline=(1,), batching=policies, jobs=1, **options)  # type: ignore[arg-type]


def attained(workload: LLMWorkload, policy: str, replicas: int) -> float:
    chosen = [Configuration("opt(opt-13b,gpu=a100,tp=1)", policy, instances=replicas)]
    return replay_llm(workload, chosen, slo=OBJECTIVE, jobs=1).rows[0].measures.attained or 0.0


def test_the_answer_is_the_smallest_number_that_is_enough(plan: Plan, workload: LLMWorkload) -> None:
    assert plan.met
    best = plan.met[0]
    assert attained(workload, best.batching, best.replicas) >= 0.9
    assert best.replicas == 1 or attained(workload, best.batching, best.replicas - 1) < 0.9
    for policy in POLICIES:  # nothing cheaper was passed over
        assert all(attained(workload, policy, n) < 0.9 for n in range(1, best.replicas))


def test_who_lost_and_why_is_said(plan: Plan) -> None:
    lines = reasons(plan)
    assert any(line.startswith("a10:") and "does not fit" in line for line in lines)
    assert all(trial.hourly >= plan.met[0].hourly for trial in plan.met)
    tried = {(trial.label, trial.replicas) for trial in plan.tried}
    assert len(tried) == len(plan.tried)


def test_the_frontier_gets_better_with_every_dollar(plan: Plan) -> None:
    found = frontier(plan)
    assert all(a.hourly < b.hourly and a.attained < b.attained for a, b in pairwise(found))
    assert not any(
        other.hourly <= trial.hourly and other.attained > trial.attained for trial in found for other in plan.tried
    )


def test_an_objective_that_no_device_can_keep_is_not_simulated(workload: LLMWorkload) -> None:
    found = plan_llm(
        workload, "opt-13b", slo("tpot=1ms"), gpus=["a100"], tensor=[1], pipeline=[1], batching=["vllm"], jobs=1
    )
    assert not found.met
    assert not found.tried
    assert "even an idle one" in found.lost[0].reason
    assert answer(found) == "Nothing that was measured can keep the objective."


def test_prices_and_limits_are_the_users(workload: LLMWorkload, plan: Plan) -> None:
    cheap = made(workload, gpus=["a100"], prices={"a100": 1.0})
    assert cheap.met[0].hourly == cheap.met[0].replicas
    few = made(workload, policies=["vllm"], gpus=["a100"], devices=1)
    if few.met:
        assert few.met[0].devices == 1
    else:
        assert "more than 1 devices" in few.lost[0].reason
        assert "comes nearest" in answer(few)
    with pytest.raises(UsageError, match="attainment"):
        made(workload, attainment=1.5)
    with pytest.raises(UsageError, match="GPU"):
        made(workload, gpus=["b9"])


def test_it_is_shown(plan: Plan) -> None:
    from rich.console import Console

    console = Console(width=120, record=True, file=open("/dev/null", "w"))
    console.print(table(plan))
    text = console.export_text()
    assert answer(plan).split(":")[0] in text
    assert "█" in text
    dearer = msgspec.structs.replace(plan, rate=2 * plan.rate)
    page = html([plan, dearer])
    assert "What a rate costs" in page
    assert page.count("<svg") == 3
    assert plan.to_dict()["frontier"]
