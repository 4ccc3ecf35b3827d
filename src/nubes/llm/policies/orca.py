"""Orca: batches that change with every iteration, of prompts and decodes together, with memory reserved ahead."""

from __future__ import annotations

from collections import Counter

from nubes.kernel.errors import UsageError
from nubes.kernel.policy import Paper, policy
from nubes.llm.scheduling.load import Load
from nubes.llm.scheduling.sequence import Sequence
from nubes.llm.scheduling.state import State
from nubes.llm.scheduling.step import Step
from nubes.llm.seams import Batch, Batching

PAPER = Paper("orca", "Orca", "Orca: A Distributed Serving System for Transformer-Based Generative Models", "OSDI 2022")
RULES = ("max", "pow2", "oracle", "paged")


class Reserving(Batching):
    """Reserves KV memory for the longest a sequence may get: `max` for `max_len` tokens, `pow2` for its length rounded
    up to a power of two, `oracle` for exactly its length, `paged` for what it holds now.
    """

    def __init__(self, reserve: str = "max", max_len: int = 2048, max_seqs: int = 256) -> None:
        if reserve not in RULES:
            raise UsageError(f"{reserve!r} is no rule to reserve memory by.", f"There are: {', '.join(RULES)}.")
        self.rule = reserve
        self.max_len = max_len
        self.max_seqs = max_seqs

    def reserve(self, sequence: Sequence) -> int:
        if self.rule == "paged":
            return sequence.known
        if self.rule == "max":
            return max(self.max_len, sequence.prompt + sequence.foreseen)
        if self.rule == "pow2":
            return sequence.prompt + (1 << max(0, sequence.foreseen - 1).bit_length())
        return sequence.prompt + sequence.foreseen

    def admitted(self, state: State) -> list[tuple[Sequence, int]]:
        """The waiting sequences that fit now, first come first served, with all of their prompts.

        Before them what is left of those admitted: if one lost what was cached for it to another of its iteration.
        """
        prompts = [(sequence, sequence.todo) for sequence in state.prefilling.values()]
        running = state.running
        free = state.free_blocks - (state.growth if self.rule == "paged" else 0)
        for sequence in state.waiting:
            need = state.need(sequence, self.reserve(sequence))
            if running + sequence.width > self.max_seqs or need > free:
                break
            free -= need
            running += sequence.width
            prompts.append((sequence, state.rows(sequence)))
        return prompts


@policy("orca", paper=PAPER)
class Orca(Reserving):
    """Every iteration holds whole prompts of those that fit, and one token of every running sequence.

    Without `selective` batching only sequences of one phase and one length go through the model together: an iteration
    of all is as many passes as there are of these.
    """

    def __init__(
        self, reserve: str = "max", max_len: int = 2048, max_seqs: int = 256, selective: bool = True
    ) -> None:  # fmt: skip
        super().__init__(reserve, max_len, max_seqs)
        self.selective = selective

    def compose(self, state: State, now: float) -> Batch:
        return Batch(True, self.admitted(state))

    def passes(self, step: Step, state: State) -> list[Load]:
        if self.selective:
            return [step.load]
        prompts = Counter((chunk.start, chunk.end) for chunk in step.chunks)
        decodes = Counter(sequence.context + 1 for sequence in state.decoding.values()) if step.decodes else {}
        return [
            *(Load.of([(end - start, start)] * count) for (start, end), count in prompts.items()),
            *(Load(decodes=count, decode_context=count * context) for context, count in decodes.items()),
        ]


@policy("static", paper=PAPER)
class Static(Reserving):
    """Request-level batching: a batch is made when none runs, and lasts until its longest member has ended.

    Prompts are padded to the longest, and members that have ended take part to the end. Over the stages of a pipeline
    it is split in `micro` batches. What Orca is compared with, as in FasterTransformer.
    """

    def __init__(self, reserve: str = "max", max_len: int = 2048, max_seqs: int = 8, micro: int = 1) -> None:
        super().__init__(reserve, max_len, max_seqs)
        self.micro = micro
        self._members = 0  # of the batch that runs, ended or not
        self._longest = 0  # tokens of the longest of them, padding included

    def compose(self, state: State, now: float) -> Batch:
        if state.decoding:
            return Batch(True, [])
        return Batch(False, self.admitted(state))

    def passes(self, step: Step, state: State) -> list[Load]:
        if step.chunks:
            self._members = sum(chunk.sequence.width for chunk in step.chunks)
            self._longest = max(chunk.end for chunk in step.chunks)
            return [Load.of([(self._longest, 0)] * -(-len(step.chunks) // self.micro))] * self.micro
        self._longest += 1
        size = -(-self._members // self.micro)
        return [Load(decodes=size, decode_context=size * self._longest)] * self.micro
