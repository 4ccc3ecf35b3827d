"""Parrot: programs sent as graphs against calls that a client makes one by one; live, and on simulated engines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nubes.kernel.errors import NotFound
from nubes.llm.policies.parrot import PAPER
from nubes.papers import Claim, Context, Result, at_most, parrot_live, reproduction

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nubes.drivers.sim.llm import Instance
    from nubes.drivers.sim.llm.graphs import GraphsServed, Program
    from nubes.workloads.llm import LLMWorkload

ENGINES = 4
SLOTS = 15_700  # tokens of KV: 12 GB of an A100-40GB
TPOT_S = 0.040  # the objective of chats
CHUNKS, CHUNK, SAID, TEMPLATE = 16, 1024, 50, 64  # of a map-reduce job: chunks of so many tokens, answers, instructions
CHAT_RATE, JOB_RATE = 1.2, 0.1  # a second
CONTEXT = 2048
BLOCK = 16  # tokens that an id of the trace stands for here; there it is 512

PACE = Claim(
    "Chats keep their pace beside map-reduce jobs.",
    "P90 over chats of the mean time between tokens, s; the objective is 40 ms",
    "none",
    at_most(TPOT_S),
)
JOBS = Claim(
    "And the jobs take hardly longer than on an engine of their own.",
    "mean time of a map-reduce job, four engines shared with chats / one engine without chats",
    "one engine for map-reduce alone",
    at_most(1.2),
)
CLAIMS = (*parrot_live.CLAIMS, PACE, JOBS)


@reproduction(PAPER, claims=CLAIMS, area="llm", seam="ordering, batching, routing", mode="both")
def run(ctx: Context) -> Iterator[Result]:
    """Live in one engine, then two kinds of tenants on four simulated ones."""
    yield from parrot_live.run(ctx)
    yield from mixed(ctx)


def mixed(ctx: Context) -> Iterator[Result]:
    """Chats that somebody waits for beside jobs of which only the end counts."""
    pace, plain, jobs, others = [], [], [], []
    seconds = ctx.pick(300.0, 1200.0)
    source = ""
    for seed in ctx.each("chats and map-reduce jobs"):
        chats, source = talk(seed, seconds)
        work = mapped(seed, seconds)
        both = serve([*chats, *work])
        alone = serve(work, engines=1)
        naive = serve([*chats, *work], routing="least-loaded", ordering="fcfs", labels=False)
        pace.append(p90(both.tpot_s("chat")))
        plain.append(p90(naive.tpot_s("chat")))
        jobs.append(float(both.took_s("job").mean()) / float(alone.took_s("job").mean()))
        others.append(float(naive.took_s("job").mean()) / float(alone.took_s("job").mean()))
    about = (
        f"{source} Map-reduce jobs of {CHUNKS} chunks of {CHUNK:,} tokens, {JOB_RATE:g} a second; {ENGINES} engines of "
        f"opt-13b on an A100 with {SLOTS:,} tokens of KV each, {seconds:g} s. Without deduction and placement (fewest "
        f"requests, first come first served), seed 0: P90 {plain[0]:.3g} s, jobs {others[0]:.3g} times as long."
    )
    yield ctx.result(PACE, pace, about, "simulated")
    yield ctx.result(JOBS, jobs, about, "simulated")


def serve(
    programs: list[Program], *, engines: int = ENGINES, routing: str = "parrot", ordering: str = "parrot",
    labels: bool = True,
) -> GraphsServed:  # fmt: skip
    from nubes.drivers.sim.llm import Instance
    from nubes.drivers.sim.llm.fleet import Hardware
    from nubes.drivers.sim.llm.graphs import simulate_graphs
    from nubes.llm.cluster.fleet import Fleet
    from nubes.llm.cluster.member import Role
    from nubes.llm.models import step_model
    from nubes.llm.scheduling.scheduler import Scheduler

    model = step_model("opt(opt-13b,tp=1)")

    def make(number: int) -> Instance:
        return Instance(Scheduler(SLOTS // 16, ordering=ordering), model)

    both: tuple[Role, ...] = ("both",)
    hardware = Hardware(make, roles=both * engines)
    return simulate_graphs(programs, Fleet(routing=routing), hardware, labels=labels)


def talk(seed: int, seconds: float) -> tuple[list[Program], str]:
    """Chats: single calls whose prompts share beginnings as Mooncake's conversations do."""
    from nubes.drivers.sim.llm.graphs import Program
    from nubes.llm.graphs.spec import Chain, Plan
    from nubes.workloads.draws import generator
    from nubes.workloads.llm_synthetic import arrivals

    workload, source = conversations(seed, seconds)
    count = round(CHAT_RATE * seconds)
    draw = generator(seed, "parrot", "chats")
    blocks = workload.blocks or ()
    sizes = [
        (max(1, int(prompt) * BLOCK // workload.block_tokens), int(output))
        for prompt, output in zip(workload.prompt, workload.output, strict=True)
    ]
    fit = [at for at, (prompt, output) in enumerate(sizes) if prompt + output <= CONTEXT]
    start = int(draw.integers(0, max(1, len(fit) - count)))
    plan = Plan((Chain(0, 0, (), (), "answer"),), {"answer": "latency"})
    picked = [fit[(start + n) % len(fit)] for n in range(count)]
    return [
        Program(float(at_s), plan, (sizes[at],), (blocks[at],), "chat")
        for at_s, at in zip(arrivals(draw, CHAT_RATE, count), picked, strict=True)
    ], source


def conversations(seed: int, seconds: float) -> tuple[LLMWorkload, str]:
    """Mooncake's trace, or what is made up like it."""
    from nubes.workloads.llm import load_llm

    said = (
        f"with {BLOCK} tokens to each of its ids in place of 512, and prompts as much shorter; {CHAT_RATE:g} a second, "
        "Poisson."
    )
    try:
        return load_llm("mooncake"), f"Chats: Mooncake's conversations, {said}"
    except NotFound:
        length = max(seconds, 600.0)
        made = load_llm(f"long-context-like(rate={CHAT_RATE},length={length:g}s)", seed=seed).with_blocks(512)
        return made, f"Chats: made up like Mooncake's conversations, {said}"


def mapped(seed: int, seconds: float) -> list[Program]:
    """Map-reduce jobs: one call for each chunk behind the same instructions, and one for all of their answers."""
    from nubes.drivers.sim.llm.graphs import Program
    from nubes.llm.graphs.spec import Chain, Plan
    from nubes.workloads.draws import generator
    from nubes.workloads.llm_synthetic import arrivals

    count = max(4, round(JOB_RATE * seconds))
    maps = tuple(Chain(n, n, (), (), f"part{n}") for n in range(CHUNKS))
    reduce = Chain(CHUNKS, CHUNKS, (), tuple(of.output for of in maps), "whole")
    plan = Plan((*maps, reduce), {"whole": "latency"})
    sizes = ((CHUNK, SAID),) * CHUNKS + ((TEMPLATE + CHUNKS * SAID, 2 * SAID),)
    shared, fresh = tuple(range(-TEMPLATE // 16, 0)), 1 << 40  # ids that no chat has
    programs = []
    for at_s in arrivals(generator(seed, "parrot", "jobs"), JOB_RATE, count):
        blocks = []
        for prompt, _ in sizes:
            own = -(-prompt // 16) - len(shared)
            blocks.append((*shared, *range(fresh, fresh + own)))
            fresh += own
        programs.append(Program(float(at_s), plan, sizes, tuple(blocks), "job"))
    return programs


def p90(values: NDArray[np.float64]) -> float:
    import numpy as np

    return float(np.percentile(values, 90))
