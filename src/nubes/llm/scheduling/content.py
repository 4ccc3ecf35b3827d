"""Keys of KV blocks: equal keys mean equal tokens from the beginning on, so equal KV."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b


class BlockKeys:
    """The keys of a growing list of tokens, one for each full block.

    A key hashes the key before it and its block's tokens, so that nobody can make two that collide. `salt` and
    `adapter` keep those apart that must not share.
    """

    def __init__(self, block_size: int, salt: str = "", adapter: str = "") -> None:
        self.block_size = block_size
        self.keys: list[object] = []
        self._last = blake2b(f"{adapter}\0{salt}".encode(), digest_size=16).digest()

    def fork(self) -> BlockKeys:
        """The same keys so far, for a list that goes on differently."""
        other = BlockKeys(self.block_size)
        other.keys, other._last = list(self.keys), self._last
        return other

    def extend(self, tokens: Sequence[int]) -> None:
        """`tokens` are all there are by now."""
        size = self.block_size
        for at in range(len(self.keys) * size, len(tokens) - size + 1, size):
            block = array("q", tokens[at : at + size]).tobytes()
            self._last = blake2b(self._last + block, digest_size=16).digest()
            self.keys.append(self._last)
