"""From logits to tokens. Rows are sampled one by one, as each has settings of its own; greedy rows all at once."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from nubes.llm.spec import Sampling

if TYPE_CHECKING:
    from numpy.typing import NDArray

CANDIDATES = 1024  # of the likeliest tokens, looked at first: nearly always all that top-p keeps is among them


class Sampler:
    """Chooses the tokens of one answer. `prompt` counts for the repetition penalty only.

    The order is that of the field: bias, penalties, what the grammar allows, temperature, min-p, top-k, top-p.
    """

    def __init__(self, sampling: Sampling, prompt: list[int], seed: tuple[int, ...]) -> None:
        self.sampling = sampling
        self.rng = np.random.default_rng(seed)
        self.greedy = sampling.temperature < 1e-5
        s = sampling
        self.penalised = bool(s.presence_penalty or s.frequency_penalty or s.repetition_penalty != 1.0)
        self.plain = self.greedy and not self.penalised and not s.logit_bias and s.logprobs is None
        self.counts: Counter[int] = Counter()
        self._prompt = np.unique(np.asarray(prompt, np.int64)) if s.repetition_penalty != 1.0 else None

    def adjust(self, logits: NDArray[np.float32]) -> None:
        """Bias and penalties, in place, on one row [vocab]."""
        s = self.sampling
        if s.logit_bias:
            logits[list(s.logit_bias)] += np.fromiter(s.logit_bias.values(), np.float32)
        if not self.penalised:
            return
        said = np.fromiter(self.counts, np.int64, len(self.counts))
        if s.repetition_penalty != 1.0:
            seen = said if self._prompt is None else np.union1d(said, self._prompt)
            values = logits[seen]
            logits[seen] = np.where(values > 0, values / s.repetition_penalty, values * s.repetition_penalty)
        if len(said):
            times = np.fromiter(self.counts.values(), np.float32, len(said))
            logits[said] -= s.frequency_penalty * times + s.presence_penalty

    def choose(self, logits: NDArray[np.float32]) -> int:
        """A token from one row of adjusted logits [vocab]; those at -inf are never chosen."""
        s = self.sampling
        if self.greedy:
            return int(logits.argmax())
        if 0 < s.top_k <= CANDIDATES or s.top_p < 1.0:
            return self._among(logits, s)
        scaled = (logits - logits.max()) / s.temperature
        weights = np.exp(scaled)
        if s.min_p > 0.0:
            weights[scaled < np.log(s.min_p)] = 0.0
        return _draw(weights, self.rng.random())

    def _among(self, logits: NDArray[np.float32], s: Sampling) -> int:
        """With top-k or top-p: looks at the likeliest only, and at all of them if these do not suffice."""
        vocab = len(logits)
        count = min(s.top_k or CANDIDATES, vocab)
        total = None
        while True:
            best = np.argpartition(logits, vocab - count)[vocab - count :] if count < vocab else np.arange(vocab)
            best = best[np.argsort(-logits[best], kind="stable")]
            scaled = (logits[best] - logits[best[0]]) / s.temperature
            weights = np.exp(scaled)
            if s.min_p > 0.0:
                weights[scaled < np.log(s.min_p)] = 0.0
            if s.top_p >= 1.0:
                break
            if s.top_k:
                total = weights.sum()
            elif total is None:
                everything = (logits - logits[best[0]]) / s.temperature
                if s.min_p > 0.0:
                    everything[everything < np.log(s.min_p)] = -np.inf
                total = np.exp(everything).sum()
            before = np.cumsum(weights) - weights  # of those likelier than each
            keep = before < s.top_p * total
            if keep[-1] and count < vocab and not s.top_k:
                count = vocab
                continue
            weights[~keep] = 0.0
            break
        return int(best[_draw(weights, self.rng.random())])

    def said(self, token: int) -> None:
        if self.penalised:
            self.counts[token] += 1

    def skip(self, count: int) -> None:
        """So many tokens were chosen elsewhere with the same seed: each took one random number."""
        if not self.greedy:
            self.rng.random(count)


def _draw(weights: NDArray[np.float32], u: float) -> int:
    """An index with probability proportional to its weight, by inversion of `u` in [0, 1)."""
    sums = np.cumsum(weights, dtype=np.float64)
    return int(np.searchsorted(sums, u * sums[-1], side="right"))


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = logits - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()), np.float32)


def likeliest(logprobs: NDArray[np.float32], count: int) -> list[tuple[int, float]]:
    """The `count` likeliest tokens, best first, with their log probabilities."""
    count = min(count, len(logprobs))
    if not count:
        return []
    best = np.argpartition(logprobs, len(logprobs) - count)[len(logprobs) - count :]
    best = best[np.argsort(-logprobs[best], kind="stable")]
    return [(int(token), float(logprobs[token])) for token in best]
