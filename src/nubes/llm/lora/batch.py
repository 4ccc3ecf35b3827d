"""Adapters of a step: those that come for later ones, and what those of its rows weigh."""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nubes.llm.scheduling.scheduler import Scheduler
    from nubes.llm.scheduling.state import State
    from nubes.llm.scheduling.step import Step


def fetch(scheduler: Scheduler, step: Step) -> None:
    """Adapters of those next in line begin their way here, where there is room for them and for the sequences."""
    state, adapters = scheduler.state, scheduler.state.adapters
    room = state.pool.available - state.growth
    kept: list[int] = []  # what is here already must not make room for what comes
    seen: set[str] = set()
    swapped = sorted(state.swapped.values(), key=lambda s: (s.rank, s.id))
    for sequence in chain(swapped, islice(state.waiting, scheduler.ahead)):
        name, size = sequence.adapter, adapters.size(sequence.adapter)
        new = size and name not in seen and name not in adapters.held
        tokens = sequence.known if sequence.host else scheduler.batching.reserve(sequence)
        room -= -(-tokens // state.block_size) + (size if new else 0)
        if room < 0:
            break
        if new:
            seen.add(name)
            if adapters.ready(name):
                kept += adapters.keep(name)
            else:
                step.fills += adapters.fetch(name, scheduler.victims)
    state.pool.release(kept, now=scheduler.now)
    step.load.filled = len(step.fills)


def weigh(state: State, step: Step) -> None:
    """What the adapters of the step's rows weigh."""
    load, adapters = step.load, state.adapters
    rows = [(chunk.sequence.adapter, chunk.end - chunk.start) for chunk in step.chunks]
    load.adapter_rows = sum(adapters.size(name) * count for name, count in rows)
    if step.decodes:
        begun = sum(adapters.size(sequence.adapter) for sequence in state.prefilling.values())
        load.adapter_rows += adapters.weight - begun
        load.adapter_blocks = adapters.blocks
    else:
        load.adapter_blocks = sum(adapters.size(name) for name in {name for name, _ in rows})
