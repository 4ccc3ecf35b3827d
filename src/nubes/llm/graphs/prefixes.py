"""Which beginnings prompts share: those at the boundaries of placeholders, and those that turn out to be the same text.

From: Parrot: Efficient Serving of LLM-based Applications with Semantic Variable (OSDI 2024).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

LEAST = 16  # tokens: shorter ones are not worth looking for
HEAD = 40  # characters by which texts are told apart at first
OFTEN = 3  # seen more often than that, a beginning is taken to come again
HEADS = 4096  # remembered


def boundaries(pieces: Sequence[Sequence[int]], salt: str = "") -> tuple[tuple[str, int], ...]:
    """(hash, tokens) of a prompt up to the end of each of its pieces but the last. `salt`: what must not share differs.

    One hash for each boundary, whatever the length of the pieces.
    """
    state = blake2b(salt.encode(), digest_size=12)
    found, count = [], 0
    for piece in pieces[:-1]:
        state.update(array("q", piece).tobytes())
        count += len(piece)
        if count >= LEAST:
            found.append((state.hexdigest(), count))
    return tuple(found)


class StaticPrefixes:
    """Finds the beginning that many texts have in common, where no placeholder marks its end.

    Texts are told apart by their first characters. Of those that are the same in these, the longest common prefix is
    kept, and counts once it was seen more than `often` times.
    """

    def __init__(self, often: int = OFTEN) -> None:
        self.often = often
        self._heads: dict[str, tuple[str, int]] = {}  # what was seen least lately stands first

    def seen(self, text: str) -> str:
        """What `text` is known to share with others; "" if nothing."""
        head = text[:HEAD]
        if len(head) < HEAD:
            return ""
        prefix, count = self._heads.pop(head, (text, 0))
        prefix = prefix[: _common(prefix, text)]
        self._heads[head] = prefix, count + 1
        if len(self._heads) > HEADS:
            del self._heads[next(iter(self._heads))]
        return prefix if count + 1 > self.often else ""


def _common(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginnings."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # by bisection: comparing slices is fast
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
