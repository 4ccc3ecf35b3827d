"""S-LoRA: hundreds of adapters in one batch, live on a small model, and thousands under bursts in simulation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from nubes.llm.policies.slora import PAPER
from nubes.papers import Claim, Context, Result, above, at_least, at_most, reproduction
from nubes.papers.adapters import Ask, Merging, many, throughput, zipf
from nubes.papers.generating import engine, missing, opened, prompts, text

if TYPE_CHECKING:
    from nubes.drivers.sim.llm import Served
    from nubes.llm.checkpoint import Checkpoint
    from nubes.llm.lora.adapter import Adapter

RANKS = (8, 16, 32, 64)
BATCH = 16
POWER = 1.0  # of the Zipf law by which adapters are chosen
PROMPT, OUTPUT = (16, 64), (16, 48)  # uniform
SLOTS, TIGHT = 24_000, 6_000  # tokens of the pool in which KV and adapters lie
SIM = "lora(llama-2-7b,gpu=a100)"
PCIE = 16e9  # bytes/s
SLO_S = 6.0  # until the first token

EXACT = Claim(
    "A row with an adapter comes out as if that were merged into the weights.",
    "largest difference of a logit, fp32",
    "merged weights",
    at_most(1e-3),
)
MANY = Claim(
    "200 adapters cost little.",
    "tokens/s at batch 16, 200 adapters / none",
    "base model only",
    at_least(0.70),
    "small overhead",
)
OVER_ONE = Claim(
    "Batches of one adapter at a time lose most of the batching.",
    "tokens/s, S-LoRA / one adapter at a time",
    "one-adapter",
    at_least(3.0),
    "up to 30 times (HF PEFT)",
)
OVER_MERGE = Claim(
    "Merging the adapter that is next into the weights costs even more.",
    "tokens/s, S-LoRA / merge and swap",
    "merged weights, one adapter at a time",
    at_least(5.0),
    "up to 4 times (vLLM with merged weights)",
)
FLAT = Claim("The number of adapters matters little.", "tokens/s, 500 adapters / 10", "10 adapters", at_least(0.85))
ROOM = Claim(
    "Unified paging never runs out of memory.",
    "requests that gave way or were refused, of those served",
    "none",
    at_most(0.0),
)
SPLIT = Claim(
    "Half of the memory for adapters and half for KV, each in one piece, does.",
    "requests that S-LoRA admitted and for which a 50/50 split had no room at that moment",
    "contiguous 50/50 split",
    above(0.0),
)
SIM_FLAT = Claim(
    "So it is with thousands on an A100.",
    "tokens/s with 2,000 adapters / with one, the lowest over popularities and burstiness",
    "one adapter",
    at_least(0.8),
    "near-flat beyond the number of adapters in a batch",
)
ABORT = Claim(
    "Early abort under overload lets more requests have their first token in time.",
    "share of requests with their first token within 6 s, early abort / first come first served, lower of CV 4 and 8",
    "fcfs",
    above(1.0),
)
LIVE = (EXACT, MANY, OVER_ONE, OVER_MERGE, FLAT, ROOM, SPLIT)
CLAIMS = (*LIVE, SIM_FLAT, ABORT)


@reproduction(PAPER, claims=CLAIMS, area="llm", seam="batching, ordering", mode="both")
def run(ctx: Context) -> Iterator[Result]:
    """Live first, each seed with adapters and requests of its own; then a sweep in virtual time."""
    why = missing()
    if why:
        yield from ctx.all_unmeasured(LIVE, why, "live")
    else:
        yield from live(ctx)
    yield from simulated(ctx)


# -- live -------------------------------------------------------------------------------------------------------------


class Held(NamedTuple):
    """What S-LoRA had in memory after a step."""

    adapters: dict[str, int]  # blocks by name
    kv: int  # blocks
    new: int  # requests admitted since the step before


def live(ctx: Context) -> Iterator[Result]:
    count = ctx.pick(48, 400)
    values: dict[Claim, list[float]] = {claim: [] for claim in LIVE}
    for seed in ctx.each("a model with 500 adapters"):
        values[EXACT].append(difference(seed))
        checkpoint, runtime = opened("int8", SLOTS)
        adapters = many(checkpoint.shape, [RANKS[n % 4] for n in range(500)], seed, runtime.slots.dtype)
        asks = requests(count, 200, seed)
        few, lots = requests(count, 10, seed), requests(count, 500, seed)
        plain = [ask._replace(adapter="") for ask in asks]
        speed = {"plain": 0.0, "200": 0.0, "10": 0.0, "500": 0.0}
        for _ in range(ctx.pick(2, 3)):  # the best of each, in turns
            for name, some in (("plain", plain), ("200", asks), ("10", few), ("500", lots)):
                speed[name] = max(speed[name], serve(checkpoint, runtime, adapters, some, seed))
        values[MANY].append(speed["200"] / speed["plain"])
        values[FLAT].append(speed["500"] / speed["10"])
        ctx.say("one adapter at a time")
        one = serve(checkpoint, runtime, adapters, asks, seed, f"one-adapter(max_seqs={BATCH})")
        values[OVER_ONE].append(speed["200"] / one)
        ctx.say("merging and swapping")
        merging = Merging(runtime, checkpoint)  # type: ignore[arg-type]
        merged = serve(checkpoint, merging, adapters, asks, seed, f"one-adapter(max_seqs={BATCH})")
        values[OVER_MERGE].append(speed["200"] / merged)
        runtime.close()
        checkpoint, runtime = opened("int8", TIGHT)
        gave_way, trail = held(checkpoint, runtime, adapters, lots, seed)
        values[ROOM].append(gave_way)
        values[SPLIT].append(rejected(trail, runtime.blocks))
        runtime.close()
    about = (
        f"smollm2-135m in int8 on this machine's cores; adapters of ranks {RANKS} on q, k, v and o, chosen by Zipf's "
        f"law ({POWER:g}); {count} requests at once, {PROMPT[0]} to {PROMPT[1]} tokens in, {OUTPUT[0]} to {OUTPUT[1]} "
        f"out, batches of at most {BATCH}; a pool of {SLOTS:,} tokens ({TIGHT:,} to see whether it runs out)."
    )
    for claim in LIVE:
        yield ctx.result(claim, values[claim], about, "live")


def requests(count: int, among: int, seed: int) -> list[Ask]:
    """The same lengths for any number of adapters."""
    import numpy as np

    lengths, names = np.random.default_rng((seed, 1)), np.random.default_rng((seed, 2))
    prompts = lengths.integers(PROMPT[0], PROMPT[1] + 1, count).tolist()
    outputs = lengths.integers(OUTPUT[0], OUTPUT[1] + 1, count).tolist()
    which = zipf(names, among, count, POWER).tolist()
    return [Ask(prompt, output, f"a{n}") for prompt, output, n in zip(prompts, outputs, which, strict=True)]


def serve(
    checkpoint: Checkpoint, runtime: Any, adapters: Sequence[Adapter], asks: Sequence[Ask], seed: int,
    batching: str = f"s-lora(max_seqs={BATCH})",
) -> float:  # fmt: skip
    """Tokens a second."""
    with engine(checkpoint, runtime, batching=batching) as made:
        for adapter in adapters:
            made.store.add(adapter)
        if isinstance(runtime, Merging):
            runtime.store = made.store
        return throughput(made, asks, seed)


def difference(seed: int) -> float:
    """Logits of a mixed batch against those of a model into which each row's adapter was merged, one by one."""
    from dataclasses import replace

    import numpy as np

    from nubes.llm.lora.segments import segments
    from nubes.llm.lora.store import Store
    from nubes.llm.runtime.rows import causal

    checkpoint, runtime = opened("fp32", 8_000)
    store = Store(runtime)
    draw = np.random.default_rng(seed)
    free = draw.permutation(runtime.blocks).tolist()
    prose, words = text(checkpoint), list[int]()
    parts, owners, counts = [], [], []
    for adapter in many(checkpoint.shape, RANKS, seed, np.float32):
        store.add(adapter)
        blocks = [free.pop() for _ in range(store.sizes[adapter.key])]
        for nth, block in enumerate(blocks):
            runtime.place(adapter, nth, block)
        owner = store.placed(adapter.key, blocks)
        for count in draw.integers(1, 12, 3).tolist():
            parts.append(([free.pop()], 0, count))
            owners.append(owner)
            counts.append(count)
            words += prompts(prose, [count], len(words))[0]
    rows, tokens = causal(parts), np.array(words, np.int32)
    outputs = np.arange(len(words), dtype=np.int32)
    got = runtime.step(tokens, replace(rows, lora=segments(owners, counts)), outputs)
    merging = Merging(runtime, checkpoint, store)  # type: ignore[arg-type]
    worst, at = 0.0, 0
    for owner, part, count in zip(owners, parts, counts, strict=True):
        if merging.merged != owner.name:
            merging.merge(store.names[owner.name])
        want = runtime.step(tokens[at : at + count], causal([part]), np.arange(count, dtype=np.int32))
        worst = max(worst, float(np.abs(got[at : at + count] - want).max()))
        at += count
    runtime.close()
    return worst


def held(
    checkpoint: Checkpoint, runtime: Any, adapters: Sequence[Adapter], asks: Sequence[Ask], seed: int
) -> tuple[float, list[Held]]:
    """How many requests gave way or were refused, and what was in memory over time."""
    trail: list[Held] = []
    with engine(checkpoint, runtime, batching="s-lora(max_seqs=64)") as made:
        for adapter in adapters:
            made.store.add(adapter)
        scheduler = made.scheduler
        complete, running = scheduler.complete, set[int]()

        def watched(step: Any, now: float) -> Any:
            state = scheduler.state
            now_running = {*state.decoding, *state.prefilling}
            blocks = {name: len(of) for name, of in state.adapters.held.items()}
            kv = sum(len(s.blocks) for s in (*state.decoding.values(), *state.prefilling.values()))
            trail.append(Held(blocks, kv, len(now_running - running)))
            running.clear()
            running.update(now_running)
            return complete(step, now)

        scheduler.complete = watched  # type: ignore[method-assign]
        throughput(made, asks, seed)  # raises for one that is refused
        return float(scheduler.preemptions), trail


def rejected(trail: Sequence[Held], blocks: int) -> float:
    """Admissions at which half of the blocks did not do for adapters in one piece each, or the other half for KV."""
    half, count = blocks // 2, 0
    where: dict[str, tuple[int, int]] = {}
    for adapters, kv, new in trail:
        where = {name: at for name, at in where.items() if name in adapters}
        failed = kv > blocks - half
        for name, size in adapters.items():
            if name not in where:
                start = first_fit(list(where.values()), size, half)
                if start is None:
                    failed = True
                else:
                    where[name] = (start, size)
        count += new if failed else 0
    return float(count)


def first_fit(taken: Sequence[tuple[int, int]], size: int, room: int) -> int | None:
    """Where the first gap of `size` begins between what is taken: (start, size) each."""
    at = 0
    for start, length in sorted(taken):
        if start - at >= size:
            return at
        at = start + length
    return at if room - at >= size else None


# -- simulated --------------------------------------------------------------------------------------------------------


def simulated(ctx: Context) -> Iterator[Result]:
    import numpy as np

    length_s = ctx.pick(60.0, 300.0)
    worst: list[float] = []
    for seed in ctx.each("from one adapter to 2,000"):
        ratios = []
        for cv in ctx.pick((1.0, 8.0), (1.0, 2.0, 4.0, 8.0)):
            alone = spoken(offered(20.0, length_s, 1, 1.0, cv, seed))
            counts, alphas = ctx.pick(((2000,), (0.1, 1.0)), ((10, 100, 500, 1000, 2000), (0.1, 0.3, 1.0)))
            ratios += [spoken(offered(20.0, length_s, n, alpha, cv, seed)) / alone for n in counts for alpha in alphas]
        worst.append(min(ratios))
    about = (
        f"adapters of ranks {RANKS}, 8 to 512 tokens in and out, more requests than an A100 serves (20 a second, "
        f"{length_s:g} s). {SIM}, adapters over PCIe at {PCIE / 1e9:g} GB/s."
    )
    yield ctx.result(SIM_FLAT, worst, about, "simulated")
    gains: list[float] = []
    rate = 16.0  # more than it serves
    for seed in ctx.each("early abort"):
        gain = []
        for cv in (4.0, 8.0):
            workload = offered(rate, ctx.pick(120.0, 600.0), 200, 1.0, cv, seed)
            share = {
                name: float(np.mean(np.nan_to_num(played(workload, ordering=name).ttft_s, nan=np.inf) <= SLO_S))
                for name in ("fcfs", f"early-abort(slo={SLO_S:g})")
            }
            first, abort = share.values()
            gain.append(abort / first)
        gains.append(min(gain))
    yield ctx.result(ABORT, gains, f"200 adapters, {rate:g} requests a second. {SIM}.", "simulated")


def offered(rate: float, length_s: float, adapters: int, alpha: float, cv: float, seed: int) -> Any:
    from nubes.workloads.llm import load_llm

    name = f"adapters(rate={rate},length={length_s}s,adapters={adapters},alpha={alpha},cv={cv})"
    return load_llm(name, seed=seed)


def played(workload: Any, ordering: str = "fcfs") -> Served:
    from nubes.drivers.sim.llm import Instance, simulate_llm
    from nubes.llm.models import step_model
    from nubes.llm.models.facts import llm_facts
    from nubes.llm.models.lora import blocks_of
    from nubes.llm.scheduling.scheduler import Scheduler

    model, facts = step_model(SIM), llm_facts("llama-2-7b")
    sizes = {str(n): blocks_of(facts, RANKS[n % 4]) for n in set(workload.adapter.tolist())}
    scheduler = Scheduler(model.kv_tokens // 16, batching="s-lora", ordering=ordering, retention="none", adapters=sizes)
    return simulate_llm(workload, [Instance(scheduler, model, 16 * model.kv_bytes / PCIE)])


def spoken(workload: Any) -> float:
    """Tokens generated a second until the last answer."""
    outcome = played(workload)
    return float(workload.output.sum() / outcome.seconds)
