"""A request that runs, its answers, and how each answer's next token is chosen."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np

from nubes.llm.engine.answer import Answer
from nubes.llm.engine.sampling import Sampler, likeliest, log_softmax
from nubes.llm.live import Tokens
from nubes.llm.scheduling.content import BlockKeys
from nubes.llm.scheduling.sequence import Sequence
from nubes.llm.spec import Delta, Request, TokenLogprob

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nubes.llm.engine.structured import Constraint
    from nubes.llm.lora.adapter import Adapter
    from nubes.llm.seams import Draft


class Job:
    """A request and whoever waits for its deltas."""

    def __init__(self, request: Request, loop: asyncio.AbstractEventLoop) -> None:
        self.request = request
        self.loop = loop
        self.deltas: asyncio.Queue[Delta] = asyncio.Queue()
        self.choices: list[Choice] = []
        self.left = request.n  # answers that have not ended
        self.queued_s: float | None = None  # from its arrival to the first step with it
        self.gone = False  # nobody waits any more
        self.said: list[int] = []  # tokens it has from another engine
        self.adapter: Adapter | None = None  # lives for as long as somebody has it


class Choice:
    """One answer: its sequence in the scheduler, its tokens, and what they may be."""

    def __init__(
        self, job: Job, index: int, sequence: Sequence, text: list[int], keys: BlockKeys, tokens: Tokens, seed: int
    ) -> None:
        sampling = job.request.sampling
        self.job = job
        self.sequence = sequence
        self.text = text  # the prompt's tokens and its own
        self.keys = keys
        self.answer = Answer(index, sampling, tokens, sequence.limit)
        self.told = False  # whether anything was sent of it
        self.scores: list[TokenLogprob | None] | None = None  # of the prompt's tokens, while they are wanted
        if sampling.prompt_logprobs is not None and not index:
            self.scores = [None] * len(job.request.prompt)
        self.draft: Draft | None = None  # what guesses its tokens, from the first time that any are wanted
        self._tokens = tokens
        self._sampler = Sampler(sampling, job.request.prompt, (seed, index))
        self._constraint = _constraint(job.request, tokens)

    def next(self, logits: NDArray[np.float32]) -> Delta:
        """Chooses from one row of logits [vocab], which stays as it is. The last delta has a `finish`."""
        sampler, constraint = self._sampler, self._constraint
        sampling = sampler.sampling
        logprob: TokenLogprob | None = None
        if sampler.plain and constraint is None and not sampling.min_tokens:
            token = int(logits.argmax())
        else:
            logits = logits.copy()
            sampler.adjust(logits)
            if constraint is not None:
                logits[~constraint.mask()] = -np.inf
            if self.answer.count < sampling.min_tokens:
                logits[[*self._tokens.eos, *sampling.stop_token_ids]] = -np.inf
            token = sampler.choose(logits)
            if sampling.logprobs is not None:
                logprob = self._logprob(log_softmax(logits), token, sampling.logprobs)
            if constraint is not None:
                constraint.advance(token)
        sampler.said(token)
        self.text.append(token)
        self.keys.extend(self.text)
        delta = self.answer.push(token, logprob)
        if delta.finish is None and constraint is not None and constraint.done:
            delta.finish = self.answer.finish = "stop"
        return delta

    def resume(self, said: list[int]) -> None:
        """Goes on after tokens that were chosen and sent elsewhere, with the same seed."""
        for token in said:
            if self._constraint is not None:
                self._constraint.advance(token)
            self._sampler.said(token)
            self.text.append(token)
            self.answer.push(token)
        self._sampler.skip(len(said))
        self.keys.extend(self.text)
        self.told = bool(said)

    def score(self, start: int, logits: NDArray[np.float32]) -> None:
        """Logits [rows, vocab] after the prompt's tokens from `start` on say how likely each next one was."""
        scores, count = self.scores, self._sampler.sampling.prompt_logprobs or 0
        for at, row in enumerate(logits, start + 1):
            if scores is not None and at < len(scores):
                token, logprobs = self.text[at], log_softmax(row)
                rank = 1 + int((logprobs > logprobs[token]).sum())
                scores[at] = self._logprob(logprobs, token, count, rank)

    def _logprob(self, logprobs: NDArray[np.float32], token: int, count: int, rank: int = 0) -> TokenLogprob:
        def told(token: int) -> tuple[str, bytes]:
            raw = self._tokens.piece(token) or self._tokens.decode([token]).encode()
            return raw.decode("utf-8", "replace"), raw

        top = tuple((other, *told(other), value) for other, value in likeliest(logprobs, count))
        return TokenLogprob(token, *told(token), float(logprobs[token]), top, rank)

    def fork(self, sequence: Sequence, seed: int) -> Choice:
        """Another answer to the same prompt, which is done."""
        keys = self.keys.fork()
        sequence.keys = keys.keys
        index = sequence.id - sequence.group
        other = Choice(self.job, index, sequence, list(self.text), keys, self._tokens, seed)
        self.job.choices.append(other)
        return other


def _constraint(request: Request, tokens: Tokens) -> Constraint | None:
    if request.sampling.grammar is None:
        return None
    from nubes.llm.engine.structured import Constraint

    return Constraint(request.sampling.grammar, tokens)
