"""KV memory of a step: blocks for what grows, who gives way when there are none, and how they come back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nubes.llm.scheduling.sequence import DECODE, SWAPPED, WAITING, Sequence
from nubes.llm.scheduling.step import Restored, Step

if TYPE_CHECKING:
    from nubes.llm.scheduling.scheduler import Scheduler


def grow(scheduler: Scheduler, step: Step, now: float) -> None:
    """A block for every decode whose next token needs one; somebody gives way if there is none."""
    state = scheduler.state
    pool, size = state.pool, state.block_size
    growing = state.growing()
    if not growing and not state.forked:
        return
    while len(growing) + len(state.forked) > pool.available:
        preempt(scheduler, step, now)
        growing = state.growing()
    if growing:
        if state.shares:
            for sequence in growing:
                scheduler.register(sequence)
        for sequence, block in zip(growing, pool.take(len(growing), scheduler.victims), strict=True):
            sequence.blocks.append(block)
    if not state.forked:
        return
    for sequence in state.forked:  # copy on write: each gets a block of its own to write to
        at = sequence.context // size
        old = sequence.blocks[at]
        if old in pool.shared:
            (new,) = pool.take(1, scheduler.victims)
            step.copies.append((old, new))
            pool.release([old])
            sequence.blocks[at] = new
    state.forked.clear()


def preempt(scheduler: Scheduler, step: Step, now: float) -> None:
    """One group gives way: to host memory, or to the queue, from where it starts anew."""
    state = scheduler.state
    victim = scheduler.preemption.victim(state, now)
    group = [s for s in (*state.decoding.values(), *state.prefilling.values()) if s.group == victim.group]
    for sequence in group:
        scheduler.preemptions += 1
        sequence.preemptions += 1
        sequence.paused_s = now
        decoding = sequence.state == DECODE
        state.adapters.leave(sequence.adapter, now)
        if decoding:
            state.leave(sequence, WAITING)
            scheduler.register(sequence)
        else:
            del state.prefilling[sequence.id]
            _forget(step, sequence)
        if decoding and len(sequence.blocks) <= state.host.available and scheduler.preemption.swaps(sequence, state):
            sequence.host = state.host.take(len(sequence.blocks), scheduler.host_victims)
            step.saves += zip(sequence.blocks, sequence.host, strict=True)
            scheduler.swaps += 1
            state.pool.release(sequence.blocks, sequence.session, now)
            sequence.reset(sequence.context)
            sequence.state = SWAPPED
            state.swapped[sequence.id] = sequence
        else:
            state.pool.release(sequence.blocks, sequence.session, now)
            sequence.reset()
            state.enqueue(sequence)


def _forget(step: Step, sequence: Sequence) -> None:
    """Takes a sequence's rows out of the step that is being made."""
    load = step.load
    for chunk in [chunk for chunk in step.chunks if chunk.sequence is sequence]:
        step.chunks.remove(chunk)
        count = chunk.end - chunk.start
        load.prefills -= 1
        load.prefill_rows -= count
        load.prefill_squares -= count * count
        load.prefill_pairs -= count * chunk.start
        load.prefill_context -= chunk.start


def resume(scheduler: Scheduler, step: Step) -> None:
    """Those in host memory come back, the first in line first, as long as there is room for them to grow."""
    state = scheduler.state
    for sequence in sorted(state.swapped.values(), key=lambda s: (s.rank, s.id)):
        more = len(sequence.host) + 1 + state.adapters.need(sequence.adapter)
        if more + state.growth > state.pool.available:
            break
        del state.swapped[sequence.id]
        state.adapters.hold(sequence.adapter)
        sequence.blocks = state.pool.take(len(sequence.host), scheduler.victims)
        step.loads += zip(sequence.host, sequence.blocks, strict=True)
        state.unswap(sequence)
        state.join(sequence)
        step.resumed.append(sequence)
        adapter = state.adapters.held.get(sequence.adapter, [])
        table = list(sequence.blocks)
        step.restored.append(Restored(sequence, table, list(range(len(table))), sequence.context, adapter))
