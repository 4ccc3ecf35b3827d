"""What the scheduler knows, and the questions its policies ask of it."""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping
from collections.abc import Sequence as Keys

from nubes.llm.lora.paging import Adapters
from nubes.llm.scheduling.blocks import BlockPool
from nubes.llm.scheduling.sequence import WAITING, Sequence


def by_rank(sequence: Sequence) -> tuple[tuple[float, ...], int]:
    return sequence.rank, sequence.id


class State:
    """Sequences by what they do, and the blocks they hold.

    `buckets[t % block_size]` are the decoding sequences that begin a new block in decode step t, so that a step looks
    at those only.
    """

    def __init__(
        self, blocks: int, block_size: int, host_blocks: int = 0, *, shares: bool = True, gaps: bool = False,
        adapters: Mapping[str, int] = {},
    ) -> None:  # fmt: skip
        self.pool = BlockPool(blocks, block_size)
        self.adapters = Adapters(self.pool, adapters)
        self.host = BlockPool(host_blocks, block_size)  # in host memory: idle KV, and that of who gave way
        self.copied: dict[int, int] = {}  # idle block -> its copy in host memory, the oldest copy first
        self.block_size = block_size
        self.shares = shares
        self.gaps = gaps
        self.waiting: list[Sequence] = []  # in the order of their ranks
        self.prefilling: dict[int, Sequence] = {}  # admitted, their prompts not done
        self.decoding: dict[int, Sequence] = {}
        self.swapped: dict[int, Sequence] = {}
        self.moving: dict[int, Sequence] = {}  # stopped, and keep their blocks until another engine has them
        self.reserved: dict[int, list[int]] = {}  # blocks for sequences that are on their way here
        self.tick = 0  # decode steps so far
        self.decode_context = 0  # KV tokens the decodes will read in the next step, their own included
        self.buckets: list[dict[int, Sequence]] = [{} for _ in range(block_size)]
        self.forked: list[Sequence] = []  # decoding, and share a block that the next step writes to

    # -- what policies ask ----------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Sequences that hold KV, or will when their prompts are done."""
        return len(self.decoding) + sum(sequence.width for sequence in self.prefilling.values())

    @property
    def free_blocks(self) -> int:
        """Blocks that can be had before the decodes have grown."""
        return self.pool.available

    @property
    def growth(self) -> int:
        """Blocks the decodes need in their next step."""
        return len(self.growing()) + len(self.forked)

    def need(self, sequence: Sequence, tokens: int) -> int:
        """Blocks that admitting a waiting sequence with room for `tokens` takes from those available.

        More than there are while its adapter is not there.
        """
        found = self.found(sequence)
        idle = self.pool.idle
        used = sum(1 for block in found if block is not None and block >= 0 and block not in idle)
        kv = -(-tokens // self.block_size) - used
        return kv + self.adapters.need(sequence.adapter) if sequence.adapter else kv

    def rows(self, sequence: Sequence) -> int:
        """Rows a waiting sequence has to compute before its next token: what it knows without what is cached."""
        found = self.found(sequence)
        return sequence.known - self.block_size * (len(found) - found.count(None))

    def found(self, sequence: Sequence) -> list[int | None]:
        """The cached blocks of a waiting sequence, ~n for block n of host memory.

        Never all it knows: the last token has to be computed.
        """
        if not self.shares or not sequence.keys:
            return []
        pool, host, memo = self.pool, self.host, sequence.memo
        version = pool.version + host.version
        if memo is not None and memo[0] == version and memo[1] == sequence.known:
            return memo[2]
        full = (sequence.known - 1) // self.block_size
        found = pool.find(sequence.keys[:full], self.gaps) if not host.index else self._tiers(sequence.keys[:full])
        while found and found[-1] is None:
            found.pop()
        sequence.memo = (version, sequence.known, found)
        return found

    def _tiers(self, keys: Keys[object]) -> list[int | None]:
        """As `BlockPool.find`, in the device's memory and then in the host's."""
        here, there = self.pool.index.get, self.host.index.get
        found: list[int | None] = []
        for key in keys:
            block = here(key)
            if block is None and (copy := there(key)) is not None:
                block = ~copy
            if block is None and not self.gaps:
                break
            found.append(block)
        return found

    def growing(self) -> list[Sequence]:
        """The decoding sequences whose next token does not fit their blocks."""
        size = self.block_size
        bucket = self.buckets[self.tick % size]
        return [sequence for sequence in bucket.values() if sequence.context >= len(sequence.blocks) * size]

    # -- places ---------------------------------------------------------------------------------------------------

    def enqueue(self, sequence: Sequence) -> None:
        sequence.state = WAITING
        insort(self.waiting, sequence, key=by_rank)

    def bucket(self, sequence: Sequence) -> dict[int, Sequence]:
        """Where a decoding sequence is looked at: in the step whose new token does not fit its blocks."""
        full = len(sequence.blocks) * self.block_size
        return self.buckets[(self.tick + full - sequence.context) % self.block_size]

    def join(self, sequence: Sequence) -> None:
        """It decodes from the next step on."""
        sequence.join(self)
        self.decoding[sequence.id] = sequence
        self.bucket(sequence)[sequence.id] = sequence
        self.decode_context += sequence.context + 1

    def advance(self, sequence: Sequence, tokens: int) -> None:
        """A decoding sequence has `tokens` more than others came by in the last step."""
        del self.bucket(sequence)[sequence.id]
        sequence.advance(tokens)
        self.bucket(sequence)[sequence.id] = sequence
        self.decode_context += tokens

    def leave(self, sequence: Sequence, state: str) -> None:
        """A decoding sequence stops, in the state it has after its last step."""
        del self.decoding[sequence.id]
        del self.bucket(sequence)[sequence.id]
        if self.forked and sequence in self.forked:
            self.forked.remove(sequence)
        self.decode_context -= sequence.context + 1
        sequence.leave(state)

    def unswap(self, sequence: Sequence) -> None:
        """Its blocks in host memory are free."""
        self.host.release(sequence.host)
        sequence.host = []
