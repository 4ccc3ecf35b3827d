"""KV that left memory comes back as a plan says, in an engine that serves: its answers are those of one with room."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest

from nubes.kernel.errors import NotFound, UnknownPolicy, UsageError
from nubes.llm.cache.expanded import Expanded
from nubes.llm.cache.restoration import Costs, Plan
from nubes.llm.engine.inputs import host_blocks
from nubes.llm.engine.local import LocalEngine
from nubes.llm.lora.adapter import random_adapter
from nubes.llm.scheduling.invariants import check
from nubes.llm.seams import Restoration
from nubes.llm.spec import Request, Sampling, Shape
from tests.llm.runtime_models import Random
from tests.llm.toy import ToyTokens

SHAPE = Shape(layers=4, hidden=128, heads=4, kv_heads=2, head_dim=32, ffn=96, vocab=101, context=512)
SHAPED = msgspec.structs.replace(SHAPE, kv_heads=4)
EAGER = "host-lru(low=1.0)"  # all that is idle is copied
PLANS = [Plan(hidden=4), Plan(tokens=1, hidden=3), Plan(hidden=2, kv=2), Plan(kv=4), Plan(tokens=2, hidden=1, kv=1)]


class Fixed(Restoration):
    """Always the same plan."""

    def __init__(self, made: Plan) -> None:
        self.made = made

    def plan(self, layers: int, costs: Costs) -> Plan:
        assert min(costs.project_s, costs.hidden_s, costs.token_s, costs.kv_s) > 0
        return self.made


def runtime(blocks: int, kind: str = "native", expanded: bool = True) -> Any:
    checkpoint = Expanded(Random(SHAPE, std=0.3)) if expanded else Random(SHAPE, std=0.3)
    if kind == "native":
        from nubes.llm.runtime.build import NoCompiler
        from nubes.llm.runtime.native import NativeRuntime

        try:
            return NativeRuntime(checkpoint, "fp32", blocks, threads=1)
        except NoCompiler as error:
            pytest.skip(str(error))
    pytest.importorskip("torch", reason="the runtime is PyTorch's")
    from nubes.llm.runtime.torch import TorchRuntime

    return TorchRuntime(checkpoint, "fp32", blocks)


def talks(made: Any, tokens: Any, first: int, vocab: int, n: int = 1, count: int = 8, **options: Any) -> Any:
    """Some conversations at once, and what was answered in each; the engine at its end."""
    adapters = options.pop("adapters", ())
    longest = options.pop("longest", 60)

    async def run() -> tuple[list[list[list[int]]], LocalEngine]:
        engine = LocalEngine("one", made, tokens, **options)
        for adapter in adapters:
            engine.store.add(adapter)
        names = ["", *(adapter.name for adapter in adapters)]

        async def talk(nth: int) -> list[list[int]]:
            draw = random.Random(nth)
            history, answers = [draw.randrange(first, vocab) for _ in range(draw.randint(3, longest))], []
            for _ in range(4):
                how = Sampling(max_tokens=draw.randint(2, 20), temperature=0.0, ignore_eos=True)
                asked = Request(
                    id=f"{nth}", prompt=list(history), sampling=how, n=n, adapter=names[nth % len(names)],
                )  # fmt: skip
                answer: list[list[int]] = [[] for _ in range(n)]
                async for delta in engine.generate(asked):
                    assert not delta.error, delta.error
                    answer[delta.index] += delta.tokens
                answers += answer
                history += answer[-1] + [draw.randrange(first, vocab) for _ in range(draw.randint(1, longest))]
            return answers

        try:
            answers = await asyncio.gather(*(talk(nth) for nth in range(count)))
            check(engine.scheduler.state)
        finally:
            await asyncio.to_thread(engine.close)
        return list(answers), engine

    return asyncio.run(asyncio.wait_for(run(), 120))


@pytest.mark.parametrize(("plan", "kind"), [*((plan, "native") for plan in PLANS), (PLANS[-1], "torch")])
def test_answers_stay_what_they_were(plan: Plan, kind: str) -> None:
    want, _ = talks(runtime(200, kind), ToyTokens(), 1, 101)
    got, engine = talks(
        runtime(30, kind), ToyTokens(), 1, 101, restoration=Fixed(plan), retention=EAGER, host_blocks=60
    )
    assert got == want
    tier = engine.scheduler.tier
    assert tier is not None
    assert tier.loaded > 0, "blocks left, and came back"


@pytest.mark.parametrize("plan", PLANS)
def test_those_who_give_way_come_back(plan: Plan) -> None:
    """Swapped out in the middle of an answer, with blocks that are not full; several answers to one prompt."""
    options = {"n": 3, "longest": 30}
    want, _ = talks(runtime(300), ToyTokens(), 1, 101, **options)
    got, engine = talks(
        runtime(40),
        ToyTokens(),
        1,
        101,
        restoration=Fixed(plan),
        retention=EAGER,
        host_blocks=150,
        preemption="swap",
        **options,
    )
    assert got == want
    assert engine.scheduler.swaps > 0


@pytest.mark.parametrize("plan", PLANS)
def test_with_adapters(plan: Plan) -> None:
    adapters = [random_adapter(f"a{n}", SHAPED, [4, 8, 16][n], n, strength=1.0) for n in range(3)]
    want, _ = talks(runtime(300), ToyTokens(), 1, 101, adapters=adapters)
    got, engine = talks(
        runtime(60), ToyTokens(), 1, 101, restoration=Fixed(plan), retention=EAGER, host_blocks=90, adapters=adapters
    )
    assert got == want
    assert engine.scheduler.tier is not None
    assert engine.scheduler.tier.loaded > 0


def test_guesses_leave_their_inputs_where_they_belong() -> None:
    want, _ = talks(runtime(200), ToyTokens(), 1, 101)
    got, engine = talks(
        runtime(30), ToyTokens(), 1, 101, restoration=Fixed(Plan(hidden=4)), retention=EAGER, host_blocks=60,
        speculation="specinfer",
    )  # fmt: skip
    assert got == want
    assert engine.scheduler.tier is not None
    assert engine.scheduler.tier.loaded > 0


def test_memory_is_bounded() -> None:
    made = runtime(32)
    assert host_blocks(made, Plan(kv=4)) == 32
    assert host_blocks(made, Plan(hidden=4)) == 32, "inputs take half, here and there"
    assert host_blocks(runtime(32, expanded=False), Plan(hidden=4)) == 0, "inputs as large as KV leave no room"
    engine = LocalEngine("one", made, ToyTokens(), restoration="kv")
    assert engine.scheduler.state.host.size == 32
    assert LocalEngine("one", made, ToyTokens(), restoration="tokens").scheduler.state.host.size == 0


def test_what_does_not_go_together() -> None:
    import nubes

    made = runtime(8)
    for wrong in ({"fusion": "cacheblend"}, {"retention": "lru"}, {"retention": "pensieve"}):
        with pytest.raises(UsageError):
            LocalEngine("one", made, ToyTokens(), restoration="hcache", **wrong)  # type: ignore[arg-type]
        with pytest.raises(UsageError):
            nubes.App("one").llm("smollm2-135m", restoration="hcache", **wrong)
    with pytest.raises(UnknownPolicy):
        nubes.App("one").llm("smollm2-135m", restoration="hcash")


@pytest.mark.parametrize("format", ["fp32", "int8"])
def test_the_real_model(format: str) -> None:
    """As `hcache` plans it for the model and for one with a KV head for each query head."""
    from nubes.llm.checkpoint import load
    from nubes.llm.runtime.build import NoCompiler
    from nubes.llm.runtime.native import NativeRuntime

    try:
        checkpoint = load("smollm2-135m")
    except NotFound as error:
        pytest.skip(str(error))
    draw = random.Random(0)
    one, two, long = ([draw.randrange(1000, 40_000) for _ in range(count)] for count in (100, 5, 150))

    async def answers(of: Any, blocks: int, **options: Any) -> tuple[list[int], LocalEngine]:
        try:
            made = NativeRuntime(of, format, blocks)  # type: ignore[arg-type]
        except NoCompiler as error:
            pytest.skip(str(error))
        engine = LocalEngine("one", made, checkpoint.tokens, **options)
        found: list[int] = []
        for prompt in (one, two, long, one + two):  # it is copied with the second, and gives way to the third
            sampling = Sampling(max_tokens=6, temperature=0.0, ignore_eos=True)
            async for delta in engine.generate(Request(id="r", prompt=prompt, sampling=sampling)):
                assert not delta.error, delta.error
                found += delta.tokens
        await asyncio.to_thread(engine.close)
        return found, engine

    for of, how in ((checkpoint, "hcache"), (Expanded(checkpoint), Fixed(Plan(hidden=30)))):
        want, _ = asyncio.run(answers(of, 40))
        got, engine = asyncio.run(answers(of, 12, restoration=how, retention=EAGER, host_blocks=40))
        assert got == want
        assert engine.scheduler.tier is not None
        assert engine.scheduler.tier.loaded > 0
        assert how != "hcache" or (engine.plan is not None and engine.plan.kv == 30), "it has few KV heads"
