"""Guesses from the text itself: what came after the same few tokens before."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nlargest

from nubes.llm.speculative.tree import Tree, expand


class Ngrams:
    """An index of what followed each run of `shortest` to `longest` tokens of one sequence, kept as it grows.

    Answers that repeat their prompt, as summaries and edits do, are guessed well by it, at the cost of a look-up.
    """

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        self.longest = longest
        self.shortest = shortest
        self._followers: dict[tuple[int, ...], dict[int, int]] = {}  # run -> token -> times, the latest last
        self._known = 0  # tokens that are in the index

    def draft(self, text: Sequence[int], widths: Sequence[int]) -> Tree:
        """Continuations of `text`, of which what was seen at the last call is the beginning."""
        self._extend(text)
        return expand(text[-self.longest :], widths, self.likely)

    def likely(self, text: Sequence[int], count: int) -> list[int]:
        """Up to `count` tokens that may follow: of the longest run that was seen first, of these what came most."""
        found: dict[int, None] = {}
        for length in range(min(self.longest, len(text)), self.shortest - 1, -1):
            followers = self._followers.get(tuple(text[-length:]))
            if followers is None:
                continue
            latest = reversed(followers.items())
            found |= dict.fromkeys(token for token, _ in nlargest(count, latest, key=lambda pair: pair[1]))
            if len(found) >= count:
                break
        return list(found)[:count]

    def _extend(self, text: Sequence[int]) -> None:
        for at in range(max(self._known, self.shortest), len(text)):
            token = text[at]
            for length in range(self.shortest, min(self.longest, at) + 1):
                followers = self._followers.setdefault(tuple(text[at - length : at]), {})
                followers[token] = followers.pop(token, 0) + 1
        self._known = len(text)
