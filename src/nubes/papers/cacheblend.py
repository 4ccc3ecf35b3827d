"""CacheBlend: prompts put together from texts whose KV is there, with a real model and in simulation on A100s."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from nubes.llm.policies.cacheblend import PAPER, CacheBlend
from nubes.papers import Claim, Context, Result, above, at_least, at_most, between, reproduction
from nubes.papers.generating import MODEL, missing
from nubes.papers.serving import capacity, requests

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nubes.llm.models import Llm
    from nubes.llm.scheduling.load import StepModel

SHARE = 0.16
SHARES = (0.0, 0.08, SHARE, 0.32, 0.64, 1.0)
TEXTS = 6
LENGTHS = (256, 512)  # tokens of a text
FAST, SLOW = 8e9, 1e9  # bytes/s of a disk

CLOSER = Claim(
    "Computing a sixth of the tokens mends most of what reuse breaks.",
    f"KL of the next token's distribution to full prefill, share {SHARE} / reuse alone, live", "fusion=reuse",
    at_most(0.5), "no noticeable loss of quality",
)  # fmt: skip
MONOTONE = Claim(
    "The more is computed, the closer.", f"times that mean KL rises along shares {', '.join(map(str, SHARES))}, live",
    "none", at_most(0.0),
)  # fmt: skip
EXACT = Claim(
    "All computed is exact.", "largest difference of a logit from full prefill with every token going on, live",
    "fusion=exact", at_most(1e-3),
)  # fmt: skip
CHOSEN = Claim(
    "It matters which tokens.", f"KL, random tokens / those that deviate most, share {SHARE}, live",
    "cacheblend(pick=random)", at_least(1.25),
)  # fmt: skip
AGREES = Claim(
    "Answers are closer, too.",
    f"top-1 agreement with full prefill over 16 tokens, share {SHARE} minus reuse alone, live", "fusion=reuse",
    above(0.0),
)  # fmt: skip
TTFT = Claim(
    "The first token comes sooner.", f"TTFT, full prefill / share {SHARE} with KV in memory, live", "fusion=exact",
    at_least(2.0), "2.2 to 3.3 times",
)  # fmt: skip
DISK = Claim(
    "A disk is as good as memory while loading is hidden.",
    "TTFT, KV on a disk that loads in 90 % of the time of recomputation / in memory, live", "memory", at_most(1.15),
)  # fmt: skip
TTFT_7B = Claim(
    "First tokens come sooner, llama-2-7b.", "mean TTFT, full prefill / share 0.15, disk of 8 GB/s", "fusion=exact",
    between(2.2, 3.3), "2.2 to 3.3 times",
)  # fmt: skip
TTFT_70B = Claim(
    "First tokens come sooner, llama-2-70b.", "mean TTFT, full prefill / share 0.15, disk of 8 GB/s", "fusion=exact",
    between(2.2, 3.3), "2.2 to 3.3 times",
)  # fmt: skip
TTFT_SLOW = Claim(
    "First tokens come sooner from a slow disk, llama-2-70b.", "mean TTFT, full prefill / share 0.15, disk of 1 GB/s",
    "fusion=exact", between(2.2, 3.3), "2.2 to 3.3 times",
)  # fmt: skip
RATE = Claim(
    "More requests a second at the same bound.",
    "highest rate with a mean TTFT of at most 3 times a lone full prefill's, share 0.15 / full, llama-2-70b, 8 GB/s",
    "fusion=exact", at_least(2.5), "2.8 to 5 times",
)  # fmt: skip
CLAIMS = (CLOSER, MONOTONE, EXACT, CHOSEN, AGREES, TTFT, DISK, TTFT_7B, TTFT_70B, TTFT_SLOW, RATE)
LIVE = CLAIMS[:7]


@reproduction(PAPER, claims=CLAIMS, area="llm", seam="fusion", mode="both")
def run(ctx: Context) -> Iterator[Result]:
    """Real documents and a real model first; then long prompts on profiled devices."""
    yield from live(ctx)
    yield from simulated(ctx)


def simulated(ctx: Context) -> Iterator[Result]:
    import numpy as np

    from nubes.kernel.errors import UsageError
    from nubes.llm.models import llm_facts, step_model

    cases = (
        (TTFT_7B, "lin(llama-2-7b,gpu=a100)", "llama-2-7b", FAST),
        (TTFT_70B, "lin(llama-2-70b,gpu=a100,tp=8)", "llama-2-70b", FAST),
        (TTFT_SLOW, "lin(llama-2-70b,gpu=a100,tp=8)", "llama-2-70b", SLOW),
        (RATE, "lin(llama-2-70b,gpu=a100,tp=8)", "llama-2-70b", FAST),
    )
    for claim, name, facts, bandwidth in cases:
        try:
            model, llm = step_model(name), llm_facts(facts)
        except UsageError as error:
            yield ctx.unmeasured(claim, str(error), "simulated")
            continue
        values = []
        for seed in ctx.each(f"prompts on {facts}"):
            prompts = lengths(ctx, seed)
            full = np.array([model.seconds(_prefill(known + rest)) for known, rest in prompts])
            fused = [blended(model, llm, known, rest, 0.15, bandwidth) for known, rest in prompts]
            if claim is RATE:
                values.append(rates(prompts, full, fused, seed))
            else:
                values.append(float(full.mean() / np.mean([ttft for ttft, _, _ in fused])))
        about = (
            f"{len(prompts):,} prompts of Mooncake's conversations (mean {np.mean([a + b for a, b in prompts]):,.0f} "
            f"tokens) as texts of 512 tokens, all stored before, each computed alone; {name}."
        )
        yield ctx.result(claim, values, about, "simulated")


def _prefill(tokens: int) -> Any:
    from nubes.llm.scheduling.load import Load

    return Load.of([(tokens, 0)])


def lengths(ctx: Context, seed: int) -> list[tuple[int, int]]:
    """(tokens of stored texts, tokens after them) of each prompt."""
    workload = requests(ctx, "mooncake", "long-context-like(rate=1,length=1200s)", seed)
    prompts = [((prompt - 1) // 512 * 512, (prompt - 1) % 512 + 1) for prompt in workload.prompt.tolist()]
    return [each for each in prompts if each[0]][:: ctx.pick(20, 1)]


def blended(
    model: StepModel, llm: Llm, known: int, rest: int, share: float, bandwidth: float
) -> tuple[float, float, float]:
    """(seconds to the first token alone, those computing, those loading): a layer loads while another computes."""
    from nubes.llm.scheduling.load import Load

    going = int(share * known) + rest
    pairs = int(share * known * known / 2 + rest * (known + rest / 2))  # rows that go on attend to all before them
    layers = llm.layers
    whole_s = model.seconds(_prefill(known + rest)) / layers
    check_s = model.seconds(Load(decodes=known + rest)) / layers
    check_s *= 2 * llm.hidden * llm.kv_heads * llm.head_dim / llm.layer_parameters  # keys and values of all rows
    part_s = model.seconds(Load(prefills=1, prefill_rows=going, prefill_pairs=max(pairs - going // 2, 0))) / layers
    load_s = known * llm.kv_bytes / layers / bandwidth
    loaded, done = 0.0, whole_s
    for layer in range(1, layers):
        loaded += load_s
        done = max(done, loaded) + part_s + (check_s if layer == 1 else 0.0)
    return done, whole_s + check_s + (layers - 1) * part_s, loaded


def rates(
    prompts: list[tuple[int, int]], full: NDArray[np.float64], fused: list[tuple[float, float, float]], seed: int
) -> float:
    """Highest sustained rate, blended / full: one device and one disk, first come first served."""
    import numpy as np

    bound_s = 3.0 * float(full.mean())
    gaps = np.random.default_rng(seed).exponential(1.0, len(prompts))

    def sustains(rate: float, services: Sequence[tuple[float, float, float]]) -> bool:
        at = device = disk = waited = 0.0
        for gap, (_, computing_s, loading_s) in zip(gaps, services, strict=True):
            at += gap / rate
            disk = max(disk, at) + loading_s
            device = max(max(device, at) + computing_s, disk)  # it waits for what still loads
            waited += device - at
        return waited / len(services) <= bound_s

    alone = [(each, each, 0.0) for each in full.tolist()]
    low = 0.05 / float(full.mean())
    best = [capacity(partial(sustains, services=of), low, 400 * low, 12) for of in (fused, alone)]
    return best[0] / best[1]


# -- with a real model ------------------------------------------------------------------------------------------------


def live(ctx: Context) -> Iterator[Result]:
    import numpy as np

    from nubes.llm.cache.texts import TextStore
    from nubes.llm.checkpoint import load
    from nubes.llm.runtime.native import NativeRuntime

    why = missing()
    if why:
        yield from ctx.all_unmeasured(LIVE, why, "live")
        return
    checkpoint = load(MODEL)
    blocks = (TEXTS * LENGTHS[1] + 128) // 16
    runtime = NativeRuntime(checkpoint, "int8", blocks, 16)
    table = list(range(blocks))
    measured: dict[Claim, list[float]] = {claim: [] for claim in LIVE}
    for seed in ctx.each("documents"):
        prompts = documents(checkpoint.tokens, seed, ctx.pick(8, 100))
        distance: dict[Any, list[float]] = {}
        agree: dict[str, list[float]] = {"reuse": [], "blend": []}
        off, ttft, disk = [], [], []
        for nth, (texts, rest) in enumerate(prompts):
            ctx.say(f"prompt {nth + 1} of {len(prompts)}, seed {seed + 1}")
            store = TextStore(ctx.folder / "texts", 1 << 32, 1 << 32)
            want, full_s = timed(runtime, store, "exact", texts, rest, table)
            goes_on = greedy(runtime, table, texts, rest, want, None)
            for share in SHARES:
                got, _ = timed(runtime, store, _policy(share), texts, rest, table)
                distance.setdefault(share, []).append(divergence(want, got))
                if share == 1.0:
                    off.append(float(np.abs(want - got).max()))
                if share in (0.0, SHARE):
                    same = greedy(runtime, table, texts, rest, got, goes_on) == goes_on
                    agree["blend" if share else "reuse"].append(float(np.mean(same)))
            got, _ = timed(runtime, store, CacheBlend(SHARE, "random", seed), texts, rest, table)
            distance.setdefault("random", []).append(divergence(want, got))
            if nth < ctx.pick(2, 20):
                full_s = min(full_s, timed(runtime, store, "exact", texts, rest, table)[1])
                memory_s = min(timed(runtime, store, CacheBlend(SHARE), texts, rest, table)[1] for _ in range(2))
                ttft.append(full_s / memory_s)
                for key in list(store.entries):
                    store.demote(key)
                store.bandwidth = store.held[False] / (0.9 * SHARE * full_s)
                row_s = full_s / sum(map(len, texts))
                disk_s = min(timed(runtime, store, CacheBlend(SHARE), texts, rest, table, row_s)[1] for _ in range(2))
                disk.append(disk_s / memory_s)
        mean = {share: float(np.mean(of)) for share, of in distance.items()}
        line = [mean[share] for share in SHARES]
        measured[CLOSER].append(mean[SHARE] / mean[0.0])
        measured[MONOTONE].append(float(sum(b > a for a, b in pairwise(line))))
        measured[EXACT].append(max(off))
        measured[CHOSEN].append(mean["random"] / mean[SHARE])
        measured[AGREES].append(float(np.mean(agree["blend"]) - np.mean(agree["reuse"])))
        measured[TTFT].append(float(np.median(ttft)))
        measured[DISK].append(float(np.median(disk)))
    runtime.close()
    about = (
        f"{len(prompts)} questions, each with {TEXTS} texts of {LENGTHS[0]} to {LENGTHS[1]} tokens from Python's own "
        f"documentation that share most rare words with it, smollm2-135m (int8); mean KL at shares "
        f"{', '.join(f'{share}: {mean[share]:.3g}' for share in SHARES)}, random: {mean['random']:.3g}; agreement "
        f"{np.mean(agree['blend']):.2f}, reuse {np.mean(agree['reuse']):.2f}."
    )
    for claim in LIVE:
        yield ctx.result(claim, measured[claim], about, "live")


def _policy(share: float) -> Any:
    """Every token goes on through the check layers where the share is 1, not around them."""
    return "reuse" if share == 0.0 else CacheBlend(min(share, 1.0 - 1e-9))


def timed(
    runtime: Any, store: Any, fusion: Any, texts: list[list[int]], rest: list[int], table: list[int], row_s: float = 0.0
) -> tuple[NDArray[np.float32], float]:
    """The logits of the next token [vocab], and seconds until they are there; texts are stored before."""
    from time import perf_counter

    from nubes.llm.cache.fusing import Blender

    blender = Blender(runtime, store, fusion, model="smollm2-135m", prefill_row_s=row_s)
    for text in texts:
        blender.learn(text, table)
    begun = perf_counter()
    logits = blender.fuse(texts, rest, table)
    took = perf_counter() - begun
    blender.close()
    return logits[0], took


def divergence(want: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    """KL of the distributions that logits stand for."""
    import numpy as np

    def log_softmax(of: NDArray[np.float32]) -> NDArray[np.float64]:
        shifted = of.astype(np.float64) - float(of.max())
        return np.asarray(shifted - np.log(np.exp(shifted).sum()))

    p, q = log_softmax(want), log_softmax(got)
    return max(0.0, float((np.exp(p) * (p - q)).sum()))


def greedy(
    runtime: Any,
    table: list[int],
    texts: list[list[int]],
    rest: list[int],
    logits: NDArray[np.float32],
    along: NDArray[np.int64] | None,
) -> NDArray[np.int64]:
    """The likeliest token at 16 places: after its own choices, or after those of another answer."""
    import numpy as np

    from nubes.llm.runtime.rows import causal

    at = sum(map(len, texts)) + len(rest)
    chosen = [int(logits.argmax())]
    for nth in range(15):
        said = chosen[-1] if along is None else int(along[nth])
        logits = runtime.step(np.array([said], np.int32), causal([(table, at + nth, 1)]), np.array([0], np.int32))[0]
        chosen.append(int(logits.argmax()))
    return np.array(chosen)


def documents(tokens: Any, seed: int, count: int) -> list[tuple[list[list[int]], list[int]]]:
    """(texts, question) from Python's documentation of itself: those that share the rarest words with the question."""
    import random
    import re
    from collections import Counter
    from math import log
    from pydoc_data.topics import topics

    draw = random.Random(f"cacheblend {seed}")
    pieces: list[tuple[list[int], set[str]]] = []
    for name in sorted(topics):
        encoded = tokens.encode(topics[name], special=False)
        at = 0
        while len(encoded) - at >= LENGTHS[0]:
            size = draw.randint(*LENGTHS)
            piece = encoded[at : at + size]
            at += size
            if len(piece) >= LENGTHS[0]:
                pieces.append((piece, set(re.findall(r"[a-z_]{3,}", tokens.decode(piece).lower()))))
    often = Counter(word for _, words in pieces for word in words)
    prompts = []
    for _ in range(count):
        _, words = draw.choice(pieces)
        asked = draw.sample(sorted(words, key=lambda word: (often[word], word))[:40], 5)
        scored = sorted(
            range(len(pieces)),
            key=lambda at: (-sum(log(len(pieces) / often[word]) for word in asked if word in pieces[at][1]), at),
        )[:TEXTS]
        draw.shuffle(scored)
        question = f"\n\nQuestion: What does the text above say about {', '.join(asked)}?\nAnswer:"
        prompts.append(([pieces[at][0] for at in scored], tokens.encode(question, special=False)))
    return prompts
