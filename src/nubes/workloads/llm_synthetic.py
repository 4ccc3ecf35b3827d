"""LLM requests that are made up: lengths from published means and medians, conversations that grow turn by turn."""

from __future__ import annotations

from collections.abc import Callable
from math import log, sqrt
from typing import TYPE_CHECKING, TypeVar

from nubes.kernel.errors import UsageError
from nubes.kernel.units import seconds as parse
from nubes.workloads.draws import generator

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nubes.workloads.llm import LLMWorkload

    Number = TypeVar("Number", np.int64, np.float64)
    Lengths = Callable[[np.random.Generator, int], NDArray[np.int64]]

PACE_S = 0.03  # per token of an answer: how a made-up conversation's arrivals are spaced before anything serves it
LENGTH_MAX = 131_072  # tokens of a request, where no limit is given

# Means and medians of tokens. Conversation and code: Azure LLM inference traces, 2023. Long context: Mooncake (FAST
# 2025). Agents: the means of its tool-and-agent trace. What a session's turn adds is chosen to meet the mean prompt.
CHAT_TEXT, CHAT_OUTPUT = (179.0, 60.0), (211.1, 129.0)
CODE_PROMPT, CODE_OUTPUT = (2047.8, 1469.0), (27.9, 13.0)
LONG_FIRST, LONG_TEXT, LONG_OUTPUT = (10_000.0, 5_700.0), (3_166.0, 1_800.0), (343.0, 297.0)
AGENT_FIRST, AGENT_TEXT, AGENT_OUTPUT = (4_000.0, 3_000.0), (475.0, 250.0), (182.0, 100.0)
CHAT_TURNS, LONG_TURNS, AGENT_TURNS = 3.5, 1.58, 8.0  # means; the long-context reuse of 36.6 % is 1 - 1 / 1.58


def chat_like(
    rate: float = 1.0, length: str | float = "10m", turns: float = CHAT_TURNS, think: str | float = "60s",
    cv: float = 1.0, limit: int = LENGTH_MAX, seed: int = 0,
) -> LLMWorkload:  # fmt: skip
    """Conversations with answers as in Azure's conversation trace, and as long prompts on average (1,155 tokens)."""
    return _converse(
        "chat-like", "Made up like Azure's conversation trace", rate, length, turns, think, cv, limit, seed,
        _lognormal(*CHAT_TEXT), _lognormal(*CHAT_OUTPUT),
    )  # fmt: skip


def code_like(
    rate: float = 1.0, length: str | float = "10m", cv: float = 1.0, limit: int = LENGTH_MAX, seed: int = 0
) -> LLMWorkload:
    """Completions as in Azure's code trace: long prompts, short answers, no sessions."""
    return _converse(
        "code-like", "Made up like Azure's code trace", rate, length, 1.0, 0.0, cv, limit, seed,
        _lognormal(*CODE_PROMPT), _lognormal(*CODE_OUTPUT),
    )  # fmt: skip


def long_context_like(
    rate: float = 1.0, length: str | float = "10m", turns: float = LONG_TURNS, think: str | float = "60s",
    cv: float = 1.0, limit: int = LENGTH_MAX, seed: int = 0,
) -> LLMWorkload:  # fmt: skip
    """Questions on long documents as in Mooncake's conversation trace: 12,035 tokens in, a third seen before."""
    return _converse(
        "long-context-like", "Made up like Mooncake's conversation trace", rate, length, turns, think, cv, limit, seed,
        _lognormal(*LONG_TEXT), _lognormal(*LONG_OUTPUT), _lognormal(*LONG_FIRST),
    )  # fmt: skip


def agents_like(
    rate: float = 1.0, length: str | float = "10m", turns: float = AGENT_TURNS, think: str | float = "2s",
    cv: float = 1.0, limit: int = LENGTH_MAX, seed: int = 0,
) -> LLMWorkload:  # fmt: skip
    """Agents that call tools: a long first prompt, then short answers and tool results in quick succession."""
    return _converse(
        "agents-like", "Made up like Mooncake's tool-and-agent trace", rate, length, turns, think, cv, limit, seed,
        _lognormal(*AGENT_TEXT), _lognormal(*AGENT_OUTPUT), _lognormal(*AGENT_FIRST),
    )  # fmt: skip


def conversations(
    rate: float = 1.0, length: str | float = "10m", turns: float = 5.5, think: str | float = "60s", cv: float = 1.0,
    limit: int = LENGTH_MAX, trace: str = "sharegpt", seed: int = 0,
) -> LLMWorkload:  # fmt: skip
    """Conversations whose turns have the lengths of random pairs of a trace, as Pensieve (EuroSys 2025) was tested.

    Raises `NotFound` where the trace is not there.
    """
    import numpy as np

    from nubes.workloads.llm import load_llm

    of = load_llm(trace, limit=limit)
    order = generator(seed, "llm", "conversations", "pairs").permutation(of.requests)

    def column(values: NDArray[np.int64]) -> Lengths:
        return lambda _, n: values[order[np.arange(n) % len(order)]]

    return _converse(
        "conversations", f"Conversations of pairs from {trace}", rate, length, turns, think, cv, limit, seed,
        column(of.prompt), column(of.output),
    )  # fmt: skip


def adapters(
    rate: float = 2.0, length: str | float = "5m", adapters: int = 200, alpha: float = 1.0, cv: float = 1.0,
    shortest: int = 8, longest: int = 512, seed: int = 0,
) -> LLMWorkload:  # fmt: skip
    """Requests for many LoRA adapters, as S-LoRA (MLSys 2024) was tested: floor(adapters * U^(1 / alpha)) is wanted.

    With `alpha=1` all are wanted as often; below that, those of small numbers more. Lengths are drawn evenly.
    """
    import numpy as np

    from nubes.workloads.llm import LLMWorkload

    long_s = parse(length)
    if adapters < 1 or not 0 < alpha <= 1 or not 1 <= shortest <= longest:
        raise UsageError("adapters: there is at least one, alpha is in 0 ... 1, and lengths rise.", "Try alpha=0.5.")
    draw = generator(seed, "llm", "adapters")
    when = arrivals(draw, rate, max(1, round(rate * long_s)), cv)
    n = len(when)
    return LLMWorkload(
        f"adapters(rate={rate:g},adapters={adapters},alpha={alpha:g},cv={cv:g})",
        f"{adapters} adapters with popularity alpha={alpha:g}, Gamma arrivals of CV {cv:g}, {shortest} to {longest} "
        "tokens in and out.",
        when, draw.integers(shortest, longest + 1, n), draw.integers(shortest, longest + 1, n), float(when[-1]),
        adapter=np.floor(adapters * draw.power(alpha, n)).astype(np.int64),
    )  # fmt: skip


GENERATORS: dict[str, Callable[..., LLMWorkload]] = {
    "chat-like": chat_like,
    "code-like": code_like,
    "long-context-like": long_context_like,
    "agents-like": agents_like,
    "conversations": conversations,
    "adapters": adapters,
}


def arrivals(draw: np.random.Generator, rate: float, n: int, cv: float = 1.0) -> NDArray[np.float64]:
    """[n] times from 0 on, `rate` a second; gaps are Gamma with that coefficient of variation (1: Poisson, 0: even)."""
    import numpy as np

    if not 0 < rate < float("inf"):
        raise UsageError(f"{rate} requests a second is no rate.", "Give a number above zero.")
    if not 0 <= cv < 100:
        raise UsageError(f"{cv} is no coefficient of variation.", "1 is Poisson, 4 is bursty.")
    if cv == 0:
        return np.arange(1, n + 1) / rate
    shape = 1.0 / cv**2
    return np.cumsum(draw.gamma(shape, 1.0 / (shape * rate), n))


def _lognormal(mean: float, middle: float) -> Lengths:
    """Lengths of that mean and median."""
    import numpy as np

    def draw(generator: np.random.Generator, n: int) -> NDArray[np.int64]:
        drawn = generator.lognormal(log(middle), sqrt(2.0 * log(mean / middle)), n)
        return np.maximum(np.rint(drawn), 1).astype(np.int64)

    return draw


def _converse(
    name: str, like: str, rate: float, length: str | float, turns: float, think: str | float, cv: float, limit: int,
    seed: int, text: Lengths, output: Lengths, first: Lengths | None = None,
) -> LLMWorkload:  # fmt: skip
    """Sessions with a geometric number of turns; each prompt is the whole history and new text.

    Sessions also begin before the workload does, so that it is as busy at its start as later. A session ends early
    when a turn would exceed `limit`.
    """
    import numpy as np

    from nubes.workloads.llm import LLMWorkload

    long_s, think_s = parse(length), parse(think)
    if not 1 <= turns <= 1000:
        raise UsageError(f"{name}: {turns} turns a session cannot be.", "Give at least 1.")
    if not long_s > 0:
        raise UsageError(f"{name}: nothing arrives in {length}.", "Give it some time: length=10m.")
    draw = generator(seed, "llm", name)
    before_s = 0.0 if turns == 1 else 5.0 * turns * (think_s + 10.0)
    expected = rate / turns * (long_s + before_s)
    begun = arrivals(draw, rate / turns, int(expected + 10 * sqrt(expected) * max(cv, 1.0)) + 20, cv) - before_s
    begun = begun[begun < long_s]
    size = draw.geometric(1.0 / turns, len(begun))
    session = np.repeat(np.arange(len(begun)), size)
    opens = np.cumsum(size) - size  # where each session's turns begin

    def before(values: NDArray[Number]) -> NDArray[Number]:
        """Sums over the earlier turns of each session."""
        sums: NDArray[Number] = np.cumsum(values) - values
        earlier: NDArray[Number] = sums - np.repeat(sums[opens], size)
        return earlier

    new, answer = text(draw, len(session)), output(draw, len(session))
    if first is not None:
        new[opens] = first(draw, len(begun))
    prompt = new + before(new + answer)
    pause = draw.exponential(think_s, len(session)) if think_s else np.zeros(len(session))
    pause[opens] = 0.0
    at = begun[session] + before(answer * PACE_S + pause) + pause
    kept = np.flatnonzero((prompt + answer <= limit) & (at >= 0.0) & (at < long_s))  # prompts grow: later turns go too
    order = kept[np.argsort(at[kept], kind="stable")]
    waited = pause[order]
    waited[np.unique(session[order], return_index=True)[1]] = 0.0  # of sessions that began earlier, too
    source = (
        f"{like}: {turns:g} turns a session, {think_s:g} s to think, {rate:g} requests a second "
        f"(cv {cv:g}, seed {seed})."
    )
    return LLMWorkload(
        name, source, at[order], prompt[order], answer[order], long_s,
        session=session[order] if turns > 1 else None, think_s=waited if turns > 1 else None,
    )  # fmt: skip
