"""Which adapters lie in the KV pool: their blocks come from the same free list, and go back to it.

Used ones are held. Unused ones are kept by content as KV is, so that the retention policy drops whichever of both
nobody wanted for longest; an adapter that lost some blocks needs only these again.

From: S-LoRA: Scalable Serving of Thousands of LoRA Adapters (MLSys 2024), unified paging.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from nubes.llm.scheduling.blocks import BlockPool, Victims


class Fill(NamedTuple):
    """The `nth` part of an adapter is to be copied to a block while the step runs."""

    adapter: str
    nth: int
    block: int


class Adapters:
    """`sizes`: blocks of each adapter; one that is not there takes none."""

    def __init__(self, pool: BlockPool, sizes: Mapping[str, int]) -> None:
        self.pool = pool
        self.sizes = sizes
        self.held: dict[str, list[int]] = {}  # of running sequences
        self.users: dict[str, int] = {}
        self.filling: dict[str, list[int]] = {}  # on their way
        self.blocks = 0  # of those that are held
        self.weight = 0  # sum over running sequences of their adapters' blocks

    def size(self, name: str) -> int:
        return self.sizes.get(name, 0) if name else 0

    def ready(self, name: str) -> bool:
        """Whether a sequence with this adapter could run now."""
        return not self.size(name) or name in self.held or None not in self.found(name)

    def found(self, name: str) -> list[int | None]:
        """The blocks of an adapter that is not held, as far as they are still there."""
        keys = self._keys(name)
        return self.pool.find(keys, gaps=True) or [None] * len(keys)

    def _keys(self, name: str) -> list[object]:
        return [("adapter", name, nth) for nth in range(self.size(name))]

    def owns(self, key: object) -> bool:
        """Whether a block with that key holds part of an adapter."""
        return bool(self.sizes) and isinstance(key, tuple) and key[0] == "adapter"

    def need(self, name: str) -> int:
        """Blocks that admitting a sequence with this adapter takes from those available; more than there are if it is
        not ready."""
        size = self.size(name)
        if not size or name in self.held:
            return 0
        return size if self.ready(name) else self.pool.size + 1

    def hold(self, name: str) -> None:
        """One more running sequence uses it. It is ready."""
        size = self.size(name)
        if not size:
            return
        if name not in self.held:
            self.held[name] = self.keep(name)
            assert len(self.held[name]) == size
            self.users[name] = 0
            self.blocks += size
        self.users[name] += 1
        self.weight += size

    def leave(self, name: str, now: float) -> None:
        """A sequence that uses it runs no longer."""
        if name not in self.held:
            return
        self.users[name] -= 1
        self.weight -= len(self.held[name])
        if not self.users[name]:
            del self.users[name]
            blocks = self.held.pop(name)
            self.blocks -= len(blocks)
            self.pool.release(blocks, now=now)

    def keep(self, name: str) -> list[int]:
        """The blocks of one that is ready and not used, held until they are released."""
        blocks = [block for block in self.found(name) if block is not None]
        for block in blocks:
            self.pool.hold(block)
        return blocks

    def fetch(self, name: str, victims: Victims) -> list[Fill]:
        """Sets blocks aside for what of an adapter is missing; there is room. They are filled during this step."""
        found = self.found(name)
        for block in found:
            if block is not None:
                self.pool.hold(block)
        fresh = iter(self.pool.take(found.count(None), victims))
        blocks = [next(fresh) if block is None else block for block in found]
        self.filling[name] = blocks
        return [Fill(name, nth, block) for nth, block in enumerate(blocks) if found[nth] is None]

    def filled(self, now: float) -> None:
        """What was on its way is there: kept like anything that nobody uses yet."""
        for name, blocks in self.filling.items():
            for block, key in zip(blocks, self._keys(name), strict=True):
                self.pool.register(block, key)
            self.pool.release(blocks, now=now)
        self.filling.clear()
