"""Guesses in a step: room for their KV before it runs, and what becomes of it after it did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nubes.llm.scheduling.sequence import DECODE, Sequence
from nubes.llm.scheduling.step import Guess, Step

if TYPE_CHECKING:
    from nubes.llm.scheduling.scheduler import Scheduler
    from nubes.llm.scheduling.state import State


def widths(scheduler: Scheduler, step: Step) -> tuple[int, ...]:
    """How many tokens to guess for each decode of a step, by depth; () for none."""
    return scheduler.speculation.widths(scheduler.state, step.load) if step.decodes else ()


def guess(scheduler: Scheduler, step: Step, sequence: Sequence, rows: int) -> bool:
    """Adds `rows` guesses of a decoding sequence to a step that decodes; False if there is no memory for them."""
    state, load = scheduler.state, step.load
    held = len(sequence.blocks)
    more = max(0, -(-(sequence.context + 1 + rows) // state.block_size) - held)
    if more > state.pool.available:
        return False
    sequence.blocks += scheduler.take(more)
    step.guesses.append(Guess(sequence, rows, held))
    load.guesses += rows
    load.decodes += rows
    load.decode_context += rows * (sequence.context + 2)  # at least: what its sequence has, and itself
    load.adapter_rows += rows * state.adapters.size(sequence.adapter)
    return True


def accept(state: State, guess: Guess, tokens: int) -> None:
    """`tokens` guesses of a step that is complete held: they are known now, and their KV stands in its place.

    To be told of each guess, also where none held, and before its sequence is finished.
    """
    sequence = guess.sequence
    if sequence.state != DECODE:
        return
    if tokens:
        state.advance(sequence, tokens)
    need = max(guess.held, -(-sequence.context // state.block_size))
    state.pool.release(sequence.blocks[need:])
    del sequence.blocks[need:]
