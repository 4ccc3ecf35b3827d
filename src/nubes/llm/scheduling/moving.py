"""A sequence goes from one engine to another with its KV: what both schedulers do, between any two of their steps.

source                                   target
depart   it stops; its blocks stay       reserve  blocks for it, at once or bit by bit
release  the target has it               land     it decodes on
stay     the target has not              unreserve
"""

from __future__ import annotations

from nubes.llm.scheduling.scheduler import Scheduler
from nubes.llm.scheduling.sequence import DECODE, MOVING, Sequence


def depart(scheduler: Scheduler, sequence: Sequence) -> None:
    """A decoding sequence leaves the batch. Its blocks are held until `release` or `stay`."""
    assert sequence.state == DECODE
    scheduler.state.leave(sequence, MOVING)
    scheduler.state.moving[sequence.id] = sequence


def release(scheduler: Scheduler, sequence: Sequence, now: float) -> None:
    """The sequence is elsewhere, or not wanted any more: its blocks are free, or kept for others."""
    if sequence.state == MOVING:
        scheduler.cancel(sequence, now)


def stay(scheduler: Scheduler, sequence: Sequence) -> None:
    """A sequence that departed decodes on where it was."""
    state = scheduler.state
    assert sequence.state == MOVING
    del state.moving[sequence.id]
    state.join(sequence)
    at = sequence.context // state.block_size
    if at < len(sequence.blocks) and sequence.blocks[at] in state.pool.shared:
        state.forked.append(sequence)  # somebody else may write there first


def reserve(scheduler: Scheduler, id: int, blocks: int) -> bool:
    """Sets `blocks` more aside for a sequence that is to come; not if the decodes need them for their next step."""
    state = scheduler.state
    if blocks > state.pool.available - state.growth:
        return False
    state.reserved.setdefault(id, []).extend(scheduler.take(blocks))
    return True


def unreserve(scheduler: Scheduler, id: int, now: float) -> None:
    """The sequence does not come."""
    scheduler.state.pool.release(scheduler.state.reserved.pop(id, []), now=now)


def land(scheduler: Scheduler, sequence: Sequence, now: float) -> None:
    """A sequence decodes on in the blocks that were reserved for it: they hold the KV of all it knows but one token."""
    state = scheduler.state
    assert sequence.known - 1 <= len(state.reserved[sequence.id]) * state.block_size
    sequence.rank = scheduler.ordering.rank(sequence, now)
    sequence.blocks = state.reserved.pop(sequence.id)
    state.adapters.hold(sequence.adapter)
    sequence.computed(sequence.known - 1)
    state.join(sequence)
