"""Host memory as a second place for KV that nobody uses: copied there ahead of time, and back when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from nubes.llm.scheduling.step import Restored

if TYPE_CHECKING:
    from nubes.llm.scheduling.blocks import Idle
    from nubes.llm.scheduling.sequence import Sequence
    from nubes.llm.scheduling.state import State
    from nubes.llm.scheduling.step import Step
    from nubes.llm.seams import Retention

BATCH = 64  # of the blocks in host memory a 64th is dropped at a time: to choose them costs a look at all


class HostTier:
    """Moves idle blocks between the two pools of a `State`, as its retention says.

    What is in use has no copy. An idle block may have one; its place is then taken first, for nothing is lost. So there
    is no waiting for a copy when memory is wanted at once.

    From: Stateful Large Language Model Serving with Pensieve (EuroSys 2025).
    """

    def __init__(self, state: State, retention: Retention) -> None:
        self.state = state
        self.retention = retention
        self.saved = 0  # blocks copied to host memory, those that came back, and those that were lost
        self.loaded = 0
        self.dropped = 0

    def used(self, found: Iterable[int | None]) -> None:
        """Somebody uses these blocks again: copies of what is here are not needed any more."""
        copied = self.state.copied
        for block in found:
            if block is not None and block in copied:
                self.state.host.drop(copied.pop(block))

    def known(self, keys: Iterable[object]) -> None:
        """Somebody computed these anew: what host memory has of them is not needed any more."""
        host, pool = self.state.host, self.state.pool
        for key in keys:
            if key in host.index and key not in pool.index:
                host.drop(host.index[key])

    def load(self, step: Step, sequence: Sequence, found: Iterable[int | None]) -> None:
        """Those of a sequence's blocks that were found in host memory come from there in this step."""
        pool, host = self.state.pool, self.state.host
        places = []
        for at, block in enumerate(found):
            if block is not None and block < 0:
                places.append(at)
                step.loads.append((~block, sequence.blocks[at]))
                host.drop(~block)
                pool.register(sequence.blocks[at], sequence.keys[at])
                self.loaded += 1
        if places:
            table = sequence.blocks[: places[-1] + 1]
            tokens = len(table) * self.state.block_size
            adapter = self.state.adapters.held.get(sequence.adapter, [])
            step.restored.append(Restored(sequence, table, places, tokens, adapter))

    def copy_ahead(self, step: Step, now: float) -> None:
        """Copies what the retention wants to have in host memory, as much of it as finds a place there.

        A copy of what is still here never gives way for another: they would take turns for ever.
        """
        state = self.state
        pool, host, copied = state.pool, state.host, state.copied
        wanted = self.retention.copies(state, now)
        blocks = [block for block in wanted if not state.adapters.owns(pool.idle[block].key)]
        blocks = blocks[: host.available - len(copied)]
        if not blocks:
            return
        for block, copy in zip(blocks, host.take(len(blocks), partial(self._alone, now=now)), strict=True):
            host.keep(copy, pool.idle[block])
            copied[block] = copy
            step.saves.append((block, copy))
        self.saved += len(blocks)

    def victims(self, idle: dict[int, Idle], count: int, now: float) -> list[int]:
        """Idle blocks whose places are wanted: those that have a copy first."""
        copied = self.state.copied
        chosen = [block for block, _ in zip(copied, range(count), strict=False)]
        for block in chosen:
            del copied[block]
        if len(chosen) < count:
            lost = list(self.retention.victims(without(idle, chosen), count - len(chosen), now))
            self.dropped += len(lost)
            chosen += lost
        return chosen

    def host_victims(self, idle: dict[int, Idle], count: int, now: float) -> list[int]:
        """Blocks of host memory whose places are wanted by those who gave way: copies of what is still here first."""
        copied = self.state.copied
        chosen = [copied.pop(block) for block in list(copied)[:count]]
        if len(chosen) < count:
            chosen += self._alone(without(idle, chosen), count - len(chosen), now)
        return chosen

    def _alone(self, idle: dict[int, Idle], count: int, now: float) -> list[int]:
        """Blocks of host memory that have what is nowhere else, and are dropped: `count` or more."""
        others = without(idle, self.state.copied.values())
        lost = list(self.retention.victims(others, min(len(others), max(count, self.state.host.size // BATCH)), now))
        self.dropped += len(lost)
        return lost


def without(idle: dict[int, Idle], blocks: Iterable[int]) -> dict[int, Idle]:
    """The others."""
    left = dict(idle)
    for block in blocks:
        left.pop(block, None)
    return left
