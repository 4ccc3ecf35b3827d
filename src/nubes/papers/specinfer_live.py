"""Token trees in the engine: the same answers, more tokens a pass, and when they pay."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from math import exp
from statistics import median
from time import monotonic
from typing import TYPE_CHECKING, Any

from nubes.papers import Claim, Context, Result, above, at_least, at_most
from nubes.papers.generating import MODEL, Answer, ask, engine, missing, opened, prompts, text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nubes.llm.checkpoint import Checkpoint
    from nubes.llm.runtime.rows import Runtime
    from nubes.llm.scheduling.load import Load
    from nubes.llm.scheduling.sequence import Sequence as Row

SLOTS = 24_576
CHAIN, TREE = "sequence(depth=8,fixed=true)", "specinfer(widths=1x1x3x1x1x1x1x1)"
ANSWER = 96  # tokens at most
VOCAB = 9  # likeliest tokens that random sampling is tried on
DRAWS = 50_000
ASKS = (
    "Repeat this text word for word, and mend spelling mistakes:\n\n{}",
    "Summarise this text in a few sentences, in its own words:\n\n{}",
)

SAME = Claim(
    "Guessing changes nothing about what is said.",
    "share of 100 prompts whose greedy answers are those of plain decoding, the smaller of trees and sequences",
    "off",
    at_least(1.0),
    "outputs preserved exactly",
)
LAW = Claim(
    "Nor about what is drawn at random.",
    "chance of a worse fit (chi-square) of 50,000 pairs of tokens verified in trees to the model's own distribution",
    "the model's logits, truncated to the nine likeliest tokens",
    above(0.01),
)
SEQUENCE = Claim(
    "Guesses one after the other give more than a token a pass.",
    "tokens per pass and request, guesses up to eight deep",
    "off",
    above(1.0),
)
BRANCHES = Claim(
    "Alternatives among them give more.",
    "tokens per pass and request, trees / sequences, of the same depth and draft",
    "sequence",
    above(1.0),
    "trees of width 5 verify 1.5 to 1.8 times the tokens (stochastic), 1.2 to 1.5 (greedy)",
)
FASTER = Claim(
    "Edits and summaries are written faster.",
    "time for 24 requests one at a time, plain / trees as planned; the draft is the text itself",
    "off",
    at_least(1.3),
)
OFF = Claim(
    "Where it does not pay nothing is guessed.",
    "share of the decode steps with 32 sequences of prose that carry guesses",
    "none",
    at_most(0.1),
)
HARMLESS = Claim(
    "So that full batches lose nothing.",
    "tokens/s, planned / plain, the smaller of 8 and 32 requests of prose at once",
    "off",
    at_least(0.95),
)
CLAIMS = (SAME, LAW, SEQUENCE, BRANCHES, FASTER, OFF, HARMLESS)


def run(ctx: Context) -> Iterator[Result]:
    """All live claims; says so if there is no model."""
    why = missing()
    if why:
        yield from ctx.all_unmeasured(CLAIMS, why, "live")
        return
    yield same(ctx)
    yield law(ctx)
    checkpoint, runtime = opened("int8", SLOTS)
    yield from alone(ctx, checkpoint, runtime)
    yield from together(ctx, checkpoint, runtime)
    runtime.close()


class Steps:
    """What an engine's steps were."""

    def __init__(self) -> None:
        self.passes = self.tokens = 0  # of sequences through the model while they decode, and what came of them
        self.decodes: list[tuple[int, bool]] = []  # sequences of each decode step, and whether something was guessed

    def step(self, load: Load, seconds: float) -> None:
        sequences = load.decodes - load.guesses
        self.passes += sequences
        if sequences and not load.prefills:
            self.decodes.append((sequences, load.guesses > 0))

    def guesses(self, paths: list[list[tuple[int, int]]]) -> None:
        """What came of single guesses does not matter here."""

    def request(self, sequence: Row, end_s: float, finish: str = "stop") -> None:
        self.tokens += sequence.generated - 1  # the first comes of the prompt


def answers(
    checkpoint: Checkpoint,
    runtime: Runtime,
    asked: Sequence[list[int]],
    speculation: str,
    at_once: int,
    tokens: int = ANSWER,
) -> tuple[list[list[int]], float, Steps]:
    """What each prompt is answered with, `tokens` long and `at_once` at a time; seconds for all; the steps."""
    steps = Steps()
    with engine(checkpoint, runtime, speculation=speculation, recorder=steps) as made:

        async def everything() -> list[Answer]:
            room = asyncio.Semaphore(at_once)

            async def one(prompt: list[int]) -> Answer:
                async with room:
                    return await ask(made, prompt, tokens)

            return list(await asyncio.gather(*map(one, asked)))

        begun = monotonic()
        told = asyncio.run(everything())
        return [answer.tokens for answer in told], monotonic() - begun, steps


def chats(checkpoint: Checkpoint, count: int, seed: int, least: int = 60, most: int = 250) -> list[list[int]]:
    """Half of them edits, half of them summaries, of so many tokens of English."""
    tokens = checkpoint.tokens
    pieces = prompts(text(checkpoint), [least + (most - least) * at // count for at in range(count)], seed)
    asked = [ASKS[at % 2].format(tokens.decode(piece)) for at, piece in enumerate(pieces)]
    return [tokens.encode(tokens.chat([{"role": "user", "content": content}])) for content in asked]


def same(ctx: Context) -> Result:
    """Greedy answers with and without guesses, in fp32."""
    checkpoint, runtime = opened("fp32", SLOTS)
    shares, longest, tokens = [], ctx.pick(50, 250), ctx.pick(16, ANSWER)
    for seed in ctx.each("answers with guesses and without"):
        asked = chats(checkpoint, 100, seed, 20, longest)
        plain, _, _ = answers(checkpoint, runtime, asked, "off", 16, tokens)
        others = [answers(checkpoint, runtime, asked, speculation, 16, tokens)[0] for speculation in (CHAIN, TREE)]
        shares.append(min(sum(a == b for a, b in zip(plain, other, strict=True)) / 100 for other in others))
    runtime.close()
    about = f"{MODEL} in fp32, 100 edits and summaries of 20 to {longest} tokens, answers of {tokens}, 16 at once."
    return ctx.result(SAME, shares, about, "live")


def law(ctx: Context) -> Result:
    """Two tokens after a text, through trees of two guesses each, as the model in few bits would guess them."""
    checkpoint, runtime = opened("fp32", 4096)
    _, coarse = opened("int4", 4096)
    chances = []
    for seed in ctx.each("tokens drawn through trees"):
        (prompt,) = prompts(text(checkpoint), [50], seed)
        best, p = after(runtime, prompt, None)
        _, q = after(coarse, prompt, best)
        chances.append(chi_square(*drawn(p, q, seed)))
    runtime.close()
    coarse.close()
    about = (
        f"{MODEL} in fp32 guessed by itself in int4: two tokens of the {VOCAB} likeliest ones after 50 of English, "
        f"two guesses for the first and two for each second, {DRAWS:,} times."
    )
    return ctx.result(LAW, chances, about, "live")


def after(
    runtime: Runtime, prompt: list[int], best: NDArray[np.int32] | None
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """The likeliest tokens after a text, or those given, and [1 + VOCAB, VOCAB]: their law after it and after each.

    The text's last token and all its continuations are one step, as a tree is verified.
    """
    import numpy as np

    from nubes.llm.runtime.rows import Rows, causal

    context = len(prompt)
    table = list(range(-(-(context + VOCAB) // runtime.block_size)))
    logits = np.asarray(
        runtime.step(np.array(prompt, np.int32), causal([(table, 0, context)]), np.array([context - 1], np.int32))
    )
    if best is None:
        best = np.argsort(-logits[0], kind="stable")[:VOCAB].astype(np.int32)
    rows = Rows(
        positions=np.full(VOCAB, context, np.int32),
        slots=np.arange(context, context + VOCAB, dtype=np.int32),
        visible=np.full(VOCAB, context, np.int32),
        sequence=np.zeros(VOCAB, np.int32),
        tables=np.array(table, np.int32),
        table_start=np.array([0, len(table)], np.int32),
        extra=np.uint64(1) << np.arange(VOCAB, dtype=np.uint64),
    )
    more = np.asarray(runtime.step(best, rows, np.arange(VOCAB, dtype=np.int32)))
    scores = np.concatenate((logits, more))[:, best].astype(np.float64)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return best, weights / weights.sum(axis=1, keepdims=True)


def drawn(p: NDArray[np.float64], q: NDArray[np.float64], seed: int) -> tuple[Counter[tuple[int, int]], Any]:
    """How often each pair of tokens came, and how often it should."""
    import numpy as np

    from nubes.llm.speculative.tree import ROOT, Tree
    from nubes.llm.speculative.verify import multi_step, sampled

    draw = np.random.default_rng(seed)
    seen: Counter[tuple[int, int]] = Counter()
    for _ in range(DRAWS):
        first = draw.choice(VOCAB, size=2, p=q[0]).tolist()
        tree, guesses, rows = Tree(), [first], [0]
        for token in dict.fromkeys(first):
            node = tree.add(ROOT, token)
            second = draw.choice(VOCAB, size=2, p=q[token + 1]).tolist()
            guesses.append(second)
            rows.append(token + 1)
            for below in dict.fromkeys(second):
                tree.add(node, below)
                guesses.append([])
                rows.append(0)
        tokens = sampled(tree, p[rows], q[rows], guesses, draw)
        if len(tokens) < 2:  # the first guess did not hold: the next pass begins with the token that came instead
            tokens.append(multi_step(p[tokens[0] + 1], q[tokens[0] + 1], [], draw)[0])
        seen[tokens[0], tokens[1]] += 1
    return seen, p[0][:, None] * p[1:]


def chi_square(seen: Counter[tuple[int, int]], right: NDArray[np.float64]) -> float:
    """The chance of a worse fit. Pairs that should come less than five times count together."""
    import numpy as np

    counts = np.array([[seen[a, b] for b in range(VOCAB)] for a in range(VOCAB)], float).ravel()
    wanted = right.ravel() * DRAWS
    rare = wanted < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(wanted[~rare], wanted[rare].sum())
    counts, wanted = counts[wanted > 0], wanted[wanted > 0]
    return beyond(float(((counts - wanted) ** 2 / wanted).sum()), len(wanted) - 1)


def beyond(x: float, freedom: int) -> float:
    """How likely chi-square with so many degrees of freedom exceeds x, by the recurrence from one or two of them."""
    from math import erfc, gamma, sqrt

    chance, degrees = (exp(-x / 2), 2) if freedom % 2 == 0 else (erfc(sqrt(x / 2)), 1)
    term = exp(-x / 2) * (x / 2) ** (degrees / 2) / gamma(degrees / 2 + 1)
    while degrees < freedom:
        chance += term
        degrees += 2
        term *= x / 2 / (degrees / 2)
    return chance


def alone(ctx: Context, checkpoint: Checkpoint, runtime: Runtime) -> Iterator[Result]:
    """Tokens per pass, which are the same however many run at once; and the time of one request after the other."""
    passed: dict[str, list[float]] = {CHAIN: [], TREE: []}
    speed, tokens = [], ctx.pick(48, ANSWER)
    for seed in ctx.each("edits and summaries"):
        asked = chats(checkpoint, 24, seed)
        for speculation, per_pass in passed.items():
            _, _, steps = answers(checkpoint, runtime, asked, speculation, 8)
            per_pass.append(steps.tokens / steps.passes)
        took = {
            speculation: [answers(checkpoint, runtime, asked, speculation, 1, tokens)[1] for _ in range(ctx.pick(1, 3))]
            for speculation in ("off", "specinfer")
        }
        speed.append(median(took["off"]) / median(took["specinfer"]))
    about = f"{MODEL} in int8, 24 edits and summaries of 60 to 250 tokens, answers of"
    chain, tree = passed[CHAIN], passed[TREE]
    yield ctx.result(SEQUENCE, chain, f"{about} {ANSWER}, 8 at once.", "live")
    each = f"{about} {ANSWER}, 8 at once. Trees <1,1,3,1,1,1,1,1>: {median(tree):.2f}, sequences {median(chain):.2f}."
    yield ctx.result(BRANCHES, [a / b for a, b in zip(tree, chain, strict=True)], each, "live")
    yield ctx.result(FASTER, speed, f"{about} {tokens}, one at a time.", "live")


def together(ctx: Context, checkpoint: Checkpoint, runtime: Runtime) -> Iterator[Result]:
    """Many requests at once."""
    shares, rates = [], []
    tokens, rounds = ctx.pick(48, ANSWER), ctx.pick(2, 3)
    for seed in ctx.each("prose, 8 and 32 at once"):
        ratios = []
        for batch in (8, 32):
            asked = prompts(text(checkpoint), [50 + at % 100 for at in range(rounds * batch)], seed)
            took = []
            for _ in range(ctx.pick(1, 5)):  # in turns: both have the same of whatever else the machine does
                _, plain, _ = answers(checkpoint, runtime, asked, "off", batch, tokens)
                _, planned, steps = answers(checkpoint, runtime, asked, "specinfer", batch, tokens)
                took.append(plain / planned)
            ratios.append(median(took))
        full = [guessed for sequences, guessed in steps.decodes if sequences == 32]
        shares.append(sum(full) / len(full))
        rates.append(min(ratios))
    about = f"{MODEL} in int8, continuations of {tokens} tokens of English, {rounds} times as many as run at once."
    yield ctx.result(OFF, shares, about, "live")
    yield ctx.result(HARMLESS, rates, about, "live")
