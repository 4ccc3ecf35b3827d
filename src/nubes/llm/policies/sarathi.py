"""Sarathi-Serve: prompts in chunks that ride along with the decodes, so that no decode ever waits for a prompt."""

from __future__ import annotations

from math import ceil

from nubes.kernel.policy import Paper, policy
from nubes.llm.scheduling.sequence import Sequence
from nubes.llm.scheduling.state import State
from nubes.llm.seams import Batch, Batching

PAPER = Paper(
    "sarathi-serve",
    "Sarathi-Serve",
    "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve",
    "OSDI 2024",
)


@policy("sarathi", paper=PAPER)
class StallFree(Batching):
    """Every iteration holds one token of every running sequence, then prompts, cut to what is left of `budget` rows.

    Prompts that have begun go before new ones, which are admitted first come first served while blocks beyond the
    watermark are free and at most `max_seqs` run. The budget bounds how long an iteration takes, and with it the time
    between tokens: `nubes.llm.scheduling.tuning` finds it.

    The parts it consists of, one without the other: `chunked=false` takes prompts whole, `hybrid=false` has iterations
    of chunks and iterations of decodes, in turn.
    """

    def __init__(
        self, budget: int = 512, max_seqs: int = 256, watermark: float = 0.01, chunked: bool = True, hybrid: bool = True
    ) -> None:
        self.budget = budget
        self.max_seqs = max_seqs
        self.watermark = watermark
        self.chunked = chunked
        self.hybrid = hybrid
        self._decoded = False  # in the last iteration, where it could have been prompts

    def compose(self, state: State, now: float) -> Batch:
        if self.hybrid:
            return Batch(True, self._prompts(state, self.budget - len(state.decoding)))
        prompts = [] if state.decoding and not self._decoded else self._prompts(state, self.budget)
        self._decoded = not prompts
        return Batch(not prompts, prompts)

    def _prompts(self, state: State, left: int) -> list[tuple[Sequence, int]]:
        """Rows of prompts, `left` of them or fewer."""
        prompts: list[tuple[Sequence, int]] = []
        for sequence in state.prefilling.values():
            if left <= 0:
                break
            rows = min(sequence.todo, left) if self.chunked else sequence.todo
            prompts.append((sequence, rows))
            left -= rows
        if left <= 0 or not state.waiting or state.swapped:
            return prompts
        running = state.running
        free = state.free_blocks - state.growth - (ceil(self.watermark * state.pool.size) if running else 0)
        for sequence in state.waiting:
            need = state.need(sequence, self.reserve(sequence))
            if left <= 0 or need > free or running + sequence.width > self.max_seqs:
                break
            rows = min(state.rows(sequence), left) if self.chunked else state.rows(sequence)
            prompts.append((sequence, rows))
            left -= rows
            free -= need
            running += sequence.width
        return prompts
