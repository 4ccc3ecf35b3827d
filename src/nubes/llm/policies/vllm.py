"""vLLM's first scheduler: prompts before decodes, and KV memory in pages that are handed out as sequences grow."""

from __future__ import annotations

from math import ceil

from nubes.kernel.policy import Paper, policy
from nubes.llm.scheduling.sequence import Sequence
from nubes.llm.scheduling.state import State
from nubes.llm.seams import Batch, Batching, Preemption

PAPER = Paper(
    "vllm-pagedattention",
    "vLLM / PagedAttention",
    "Efficient Memory Management for Large Language Model Serving with PagedAttention",
    "SOSP 2023",
)


@policy("vllm", paper=PAPER)
class PrefillFirst(Batching):
    """An iteration holds whole prompts, first come first served, or else one token of every running sequence.

    A prompt is admitted while blocks beyond the watermark are free, `max_seqs` run at most and the iteration has at
    most `budget` rows. A prompt that is longer than that goes alone.
    """

    def __init__(self, budget: int = 2560, max_seqs: int = 256, watermark: float = 0.01) -> None:
        self.budget = budget
        self.max_seqs = max_seqs
        self.watermark = watermark

    def compose(self, state: State, now: float) -> Batch:
        prompts = [(sequence, sequence.todo) for sequence in state.prefilling.values()]
        if state.swapped:
            return Batch(not prompts, prompts)
        rows, running = sum(rows for _, rows in prompts), state.running
        free = state.free_blocks - ceil(self.watermark * state.pool.size) if running else state.free_blocks
        for sequence in state.waiting:
            more = state.rows(sequence)
            need = state.need(sequence, self.reserve(sequence))
            if running + sequence.width > self.max_seqs or need > free or (rows and rows + more > self.budget):
                break
            rows += more
            running += sequence.width
            free -= need
            prompts.append((sequence, more))
        return Batch(not prompts, prompts)


@policy("recompute", paper=PAPER)
class Recompute(Preemption):
    """The latest arrival gives way; its KV is computed again when there is room."""


@policy("swap", paper=PAPER)
class Swap(Preemption):
    """The latest arrival gives way; its KV waits in host memory, if there is room, and else is computed again."""

    swapping = True

    def swaps(self, sequence: Sequence, state: State) -> bool:
        return True


@policy("cheaper", paper=PAPER)
class Cheaper(Preemption):
    """The latest arrival gives way by whichever is faster: KV to host memory and back, or computed again.

    `row_s`: seconds to compute a token, on top of `step_s`, what the smallest step takes. `block_s`: seconds to move a
    block one way.
    """

    swapping = True

    def __init__(self, row_s: float = 1e-4, block_s: float = 1e-3, step_s: float = 0.0) -> None:
        self.row_s = row_s
        self.block_s = block_s
        self.step_s = step_s

    def swaps(self, sequence: Sequence, state: State) -> bool:
        return 2 * self.block_s * len(sequence.blocks) < self.step_s + self.row_s * sequence.known
