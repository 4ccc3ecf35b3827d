"""What a scheduler does with its blocks, counted step by step: coming back after giving way, samples of one prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nubes.llm.scheduling.load import StepModel
    from nubes.llm.scheduling.scheduler import Scheduler
    from nubes.llm.scheduling.step import Step

BlockSeconds = Callable[[int], float]


def recovery_s(model: StepModel, block_s: BlockSeconds, preemption: str, block_size: int, tokens: int) -> float:
    """What it costs that a sequence of `tokens` gives way and comes back: moves of blocks, and steps of its prompt.

    Two sequences fill the memory; the first to need one more block takes those of the other. `tokens` is a multiple of
    `block_size`. `block_s` gives the seconds to move a block of that size one way.
    """
    from nubes.llm.scheduling.load import Load
    from nubes.llm.scheduling.scheduler import Scheduler
    from nubes.llm.scheduling.sequence import Sequence

    blocks = 2 * tokens // block_size
    scheduler = Scheduler(
        blocks, block_size=block_size, host_blocks=blocks, batching="vllm(watermark=0)", preemption=preemption,
        retention="none",
    )  # fmt: skip
    for id in range(2):
        scheduler.arrive(Sequence(id, tokens, 2, arrived_s=float(id)), float(id))
    moves, rows = 0, 0
    for step in steps(scheduler):
        moves += len(step.saves) + len(step.loads)
        rows += sum(chunk.end - chunk.start for chunk in step.chunks if chunk.sequence.preemptions)
    assert scheduler.preemptions == 1
    return moves * block_s(block_size) + (model.seconds(Load.of([(rows, 0)])) if rows else 0.0)


def sampled(prompt: int, output: int, samples: int, block_size: int = 16) -> tuple[int, int]:
    """(the most blocks that the samples of one prompt held together, blocks that were copied on write)."""
    from nubes.llm.scheduling.scheduler import Scheduler
    from nubes.llm.scheduling.sequence import Sequence

    blocks = samples * -(-(prompt + output) // block_size)
    scheduler = Scheduler(blocks, block_size=block_size, batching="vllm", retention="none")
    scheduler.arrive(Sequence(0, prompt, output, width=samples), 0.0)
    most = copies = 0
    for step in steps(scheduler):
        copies += len(step.copies)
        most = max(most, scheduler.state.pool.used)
    return most, copies


def steps(scheduler: Scheduler) -> Iterator[Step]:
    """Runs a scheduler until nothing is left to do; each step is yielded before what came of it is told."""
    now = 0.0
    while (step := scheduler.compose(now)) is not None:
        yield step
        now += 1.0
        scheduler.complete(step, now)
        for sequence in [s for s in scheduler.state.decoding.values() if s.generated >= s.limit]:
            scheduler.finish(sequence, now)
