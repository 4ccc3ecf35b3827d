"""HCache: dropped KV from stored layer inputs, in simulation on an A100 with SSDs and in the real engine's runtime."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nubes.kernel.policy import make
from nubes.llm.cache.restoration import Costs, Plan, seconds, stored_bytes
from nubes.llm.models.states import costs_of
from nubes.llm.policies.hcache import PAPER
from nubes.papers import Claim, Context, Result, at_least, at_most, between, reproduction
from nubes.papers.generating import MODEL, missing
from nubes.papers.serving import requests

if TYPE_CHECKING:
    from nubes.llm.models import Llm
    from nubes.llm.scheduling.load import StepModel

SSD = 7e9  # bytes/s: the link is the slower side there
LINKS = (7e9, 14e9, 28e9, 32e9)  # one to four SSDs, and PCIe

KV = Claim(
    "First tokens come sooner than with loaded KV.", "mean TTFT, KV offload / hcache, one SSD, Mooncake",
    "restoration=kv", between(1.3, 1.95), "up to 1.93 times",
)  # fmt: skip
AGAIN = Claim(
    "And sooner than with computed KV.", "mean TTFT, recomputation / hcache, one SSD, Mooncake", "restoration=tokens",
    between(2.0, 5.7), "up to 5.73 times",
)  # fmt: skip
KV_CHAT = Claim(
    "First tokens come sooner than with loaded KV, in conversations of chat lengths.",
    "mean TTFT, KV offload / hcache, one SSD, ShareGPT", "restoration=kv", between(1.3, 1.95), "up to 1.93 times",
)  # fmt: skip
AGAIN_CHAT = Claim(
    "And sooner than with computed KV.", "mean TTFT, recomputation / hcache, one SSD, ShareGPT", "restoration=tokens",
    between(2.0, 5.7), "up to 5.73 times",
)  # fmt: skip
SPLIT = Claim(
    "The split is as good as the best there is.", "time of the plan / that of the best number of layers, worst of all",
    "all splits tried", at_most(1.02),
)  # fmt: skip
SAME = Claim(
    "What comes back is what was there.", "largest difference of a restored key or value, live", "never dropped",
    at_most(1e-4),
)  # fmt: skip
GOES_ON = Claim(
    "Answers go on as they would have.", "tokens that differ of a greedy continuation, live", "never dropped",
    at_most(0.0),
)  # fmt: skip
NEVER_WORSE = Claim(
    "It is never slower than the better of the two.",
    "time / min(KV load, recomputation), worst of the bandwidths, live", "restoration=kv, restoration=tokens",
    at_most(1.05),
)  # fmt: skip
OVER_KV = Claim(
    "In the middle it beats loading KV.", "time, KV load / hcache at its best bandwidth, live", "restoration=kv",
    at_least(1.4), "up to 1.93 times",
)  # fmt: skip
OVER_AGAIN = Claim(
    "And there recomputation, too.", "time, recomputation / hcache at the same bandwidth, live", "restoration=tokens",
    at_least(3.0), "up to 5.73 times",
)  # fmt: skip
STORAGE = Claim(
    "Layer inputs take half of KV's room.", "bytes stored, KV / layer inputs of all layers, live", "restoration=kv",
    between(1.99, 2.01), "1.92 to 2.40 times",
)  # fmt: skip
GROUPED = Claim(
    "With few KV heads KV itself is stored.", "share of layers of the true model whose KV is loaded, live", "none",
    at_least(1.0),
)  # fmt: skip
CLAIMS = (KV, AGAIN, KV_CHAT, AGAIN_CHAT, SPLIT, SAME, GOES_ON, NEVER_WORSE, OVER_KV, OVER_AGAIN, STORAGE, GROUPED)
LIVE = CLAIMS[5:]


@reproduction(PAPER, claims=CLAIMS, area="llm", seam="restoration", mode="both")
def run(ctx: Context) -> Iterator[Result]:
    """Histories of a chat service in virtual time; then real ones from a throttled folder."""
    yield from simulated(ctx)
    yield from live(ctx)


def simulated(ctx: Context) -> Iterator[Result]:
    import numpy as np

    from nubes.llm.models import llm_facts, step_model

    model, llm = step_model("lin(llama-2-7b,gpu=a100)"), llm_facts("llama-2-7b")
    for name, stand_in, kv, again in SOURCES:
        over_kv, over_again = [], []
        for seed in ctx.each("histories"):
            source, pairs = histories(ctx, name, stand_in, seed)
            times: dict[str, float] = {}
            for policy in ("hcache", "kv", "tokens"):
                made = make("restoration", policy)
                times[policy] = float(np.mean([ttft(made, model, llm, old, new, SSD) for old, new in pairs]))
            over_kv.append(times["kv"] / times["hcache"])
            over_again.append(times["tokens"] / times["hcache"])
        about = (
            f"{source}: {len(pairs):,} requests that continue a history (mean "
            f"{np.mean([old for old, _ in pairs]):,.0f} tokens, then {np.mean([new for _, new in pairs]):,.0f} new "
            f"ones), each alone on llama-2-7b on an A100, SSD of {SSD / 1e9:g} GB/s; new tokens follow layer by layer."
        )
        yield ctx.result(kv, over_kv, about, "simulated")
        yield ctx.result(again, over_again, about, "simulated")
    worst = 1.0
    for tokens in (512, 1024, 2048, 4096, 8192, 16_384):
        for link in LINKS:
            costs = costs_of(model, llm, tokens, link)
            plan = make("restoration", "hcache").plan(llm.layers, costs)
            worst = max(worst, seconds(plan, costs) / best(llm.layers, costs))
    yield ctx.result(SPLIT, [worst], "llama-2-7b on an A100, 512 to 16,384 tokens, 7 to 32 GB/s.", "simulated")


def best(layers: int, costs: Costs) -> float:
    """The shortest time of any number of layers from their inputs, the others computed or loaded."""
    plans = [Plan(tokens=layers - n, hidden=n) for n in range(layers + 1)]
    plans += [Plan(hidden=n, kv=layers - n) for n in range(layers + 1)]
    return min(seconds(plan, costs) for plan in plans)


CHAT = "turns=5.5,think=60s,limit=4096,rate=1,length=1800s"
SOURCES = (
    ("mooncake", "long-context-like(rate=1,length=1800s)", KV, AGAIN),
    (f"conversations({CHAT})", f"chat-like({CHAT})", KV_CHAT, AGAIN_CHAT),
)


def histories(ctx: Context, name: str, stand_in: str, seed: int) -> tuple[str, list[tuple[int, int]]]:
    """Where from, and (tokens that were there before, new ones) of requests that continue something."""
    workload = requests(ctx, name, stand_in, seed)
    if workload.session is not None:
        before: dict[int, int] = {}
        pairs = []
        for session, prompt, output in zip(
            workload.session.tolist(), workload.prompt.tolist(), workload.output.tolist(), strict=True
        ):
            if session in before and before[session] < prompt:
                pairs.append((before[session], prompt - before[session]))
            before[session] = prompt + output
        return workload.name, pairs
    if workload.blocks is None:
        workload = workload.with_blocks(512)
    assert workload.blocks is not None
    seen: set[int] = set()
    pairs = []
    for blocks, prompt in zip(workload.blocks, workload.prompt.tolist(), strict=True):
        old = next((n for n, block in enumerate(blocks) if block not in seen), len(blocks)) * workload.block_tokens
        seen.update(blocks)
        if 0 < old < prompt:
            pairs.append((old, prompt - old))
    return workload.name, pairs[:: ctx.pick(8, 1)]


def ttft(policy: Any, model: StepModel, llm: Llm, old: int, new: int, bandwidth: float) -> float:
    """Until the first token, alone on the device: each layer's new tokens run when its KV is there."""
    from nubes.llm.scheduling.load import Load

    costs = costs_of(model, llm, old, bandwidth)
    plan = policy.plan(llm.layers, costs)
    new_s = model.seconds(Load.of([(new, old)])) / llm.layers
    loaded = done = 0.0
    for layer in range(llm.layers):
        if layer < plan.tokens:
            done += costs.token_s
        elif layer < plan.tokens + plan.hidden:
            loaded += costs.hidden_s
            done = max(done, loaded) + costs.project_s
        else:
            loaded += costs.kv_s
            done = max(done, loaded)
        done += new_s
    return done


# -- with a real model ------------------------------------------------------------------------------------------------


def live(ctx: Context) -> Iterator[Result]:
    import numpy as np

    from nubes.llm.cache.expanded import Expanded
    from nubes.llm.cache.restoring import measured
    from nubes.llm.checkpoint import load
    from nubes.llm.runtime.native import NativeRuntime

    why = missing()
    if why:
        yield from ctx.all_unmeasured(LIVE, why, "live")
        return
    checkpoint = load(MODEL)
    count = ctx.pick(1024, 2048)
    blocks = count // 16 + 4
    table = list(range(blocks))
    runtime = NativeRuntime(Expanded(checkpoint), "fp32", blocks, 16)
    values: dict[Claim, list[float]] = {claim: [] for claim in LIVE}
    for seed in ctx.each("histories on disk"):
        tokens = np.random.default_rng(seed).integers(1000, 40_000, count).astype(np.int32)
        costs = measured(runtime, tokens, table, 1.0)  # at one byte a second
        sweep = []
        for share in (0.1, 0.25, 0.5, 1.0):  # of the time of recomputation that loading KV takes
            bandwidth = costs.kv_s / (share * costs.token_s)
            at = Costs(
                costs.project_s, costs.hidden_s / bandwidth, costs.token_s, costs.kv_s / bandwidth,
                costs.hidden_bytes, costs.kv_bytes,
            )  # fmt: skip
            took = {}
            for name in ("hcache", "kv", "tokens"):
                plan = make("restoration", name).plan(runtime.shape.layers, at)
                took[name], off, other = restored(ctx, runtime, tokens, table, plan, bandwidth)
                values[SAME].append(off)
                values[GOES_ON].append(other)
            sweep.append(took)
        values[NEVER_WORSE].append(max(at["hcache"] / min(at["kv"], at["tokens"]) for at in sweep))
        middle = max(sweep, key=lambda at: at["kv"] / at["hcache"])
        values[OVER_KV].append(middle["kv"] / middle["hcache"])
        values[OVER_AGAIN].append(middle["tokens"] / middle["hcache"])
        inputs = stored_bytes(Plan(hidden=runtime.shape.layers), costs)
        values[STORAGE].append(stored_bytes(Plan(kv=runtime.shape.layers), costs) / inputs)
    values[SAME], values[GOES_ON] = [max(values[SAME])], [max(values[GOES_ON])]
    about = (
        f"{count:,} tokens with smollm2-135m (fp32), a KV head for each query head, states in files read at the speed "
        "that makes loading KV take 10, 25, 50 and 100 % of recomputation; the best of two tries each."
    )
    runtime.close()
    shape = checkpoint.shape
    true = NativeRuntime(checkpoint, "fp32", blocks, 16)
    plan = make("restoration", "hcache").plan(shape.layers, measured(true, tokens, table, 1e9, 1))
    true.close()
    values[GROUPED].append(plan.kv / shape.layers)
    for claim in LIVE:
        yield ctx.result(claim, values[claim], f"{about} {plan.why}." if claim is GROUPED else about, "live")


def restored(
    ctx: Context, runtime: Any, tokens: Any, table: list[int], plan: Plan, bandwidth: float
) -> tuple[float, float, float]:
    """Seconds to restore, the largest difference of KV, and how many of the next 16 tokens differ."""
    import tempfile
    from pathlib import Path
    from time import perf_counter

    import numpy as np

    from nubes.llm.cache.chunks import ChunkStore
    from nubes.llm.cache.restoring import Restorer
    from nubes.llm.runtime.rows import causal

    with tempfile.TemporaryDirectory(dir=ctx.folder) as folder:
        store = ChunkStore(Path(folder), bandwidth=bandwidth)
        restorer = Restorer(runtime, store, plan)
        s, count = runtime.shape, len(tokens)
        kept = np.empty((s.layers, count, s.hidden), np.float32)
        runtime.kv[:] = 0
        last = runtime.step(tokens, causal([(table, 0, count)]), np.array([count - 1], np.int32), kept)
        restorer.save("history", kept, table, 0)
        restorer.flush("history")
        before = runtime.kv.copy()
        expected = greedy(runtime, table, count, last)
        took = float("inf")
        for _ in range(2):
            runtime.kv[:] = 0
            begun = perf_counter()
            restorer.restore("history", tokens, table)
            took = min(took, perf_counter() - begun)
        off = float(np.abs(runtime.kv - before).max())
        goes_on = greedy(runtime, table, count, last)
        restorer.close()
        store.close()
    return took, off, float(sum(a != b for a, b in zip(expected, goes_on, strict=True)))


def greedy(runtime: Any, table: list[int], count: int, logits: Any, many: int = 16) -> list[int]:
    """The likeliest tokens after `count` of them."""
    import numpy as np

    from nubes.llm.runtime.rows import causal

    chosen = [int(logits[0].argmax())]
    for at in range(count, count + many - 1):
        logits = runtime.step(np.array(chosen[-1:], np.int32), causal([(table, at, 1)]), np.array([0], np.int32))
        chosen.append(int(logits[0].argmax()))
    return chosen
