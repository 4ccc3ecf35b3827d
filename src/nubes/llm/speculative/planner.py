"""How many tokens to guess: what pays by measured step times and by how often guesses held.

From: SpecInfer: Accelerating Large Language Model Serving with Tree-based Speculative Inference and Verification
(ASPLOS 2024).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate
from math import exp, inf, log
from operator import mul


def size(widths: Sequence[int]) -> int:
    """Nodes of a tree in which each node at depth i has `widths[i]` children."""
    return sum(accumulate(widths, mul))


def expected(widths: Sequence[int], hits: Sequence[Sequence[float]]) -> float:
    """Tokens that verifying such a tree gives on average.

    `hits[i][r]`: how likely the token at depth i is the r-th guess there, given that all before it held.
    """
    tokens = chance = 1.0
    for width, rates in zip(widths, hits, strict=False):
        chance *= sum(rates[:width])
        tokens += chance
    return tokens


def best(
    batch: int, hits: Sequence[Sequence[float]], seconds: Callable[[int], float], depth: int, width: int, nodes: int
) -> tuple[int, ...]:
    """The widths with the most tokens per second for `batch` sequences; () if plain decoding gives as many.

    `seconds(rows)`: how long a step of so many rows takes, drafts included.
    """
    chosen: tuple[int, ...] = ()
    most = 1.0 / seconds(batch)
    chances = [list(accumulate(rates)) for rates in hits]
    times = [seconds(batch * (1 + count)) for count in range(nodes + 1)]

    def grow(widths: tuple[int, ...], leaves: int, count: int, chance: float, tokens: float) -> None:
        nonlocal chosen, most
        for more in range(1, width + 1) if len(widths) < depth else ():
            total = count + leaves * more
            if total > nodes:
                break
            deeper = chance * chances[len(widths)][more - 1]
            rate = (tokens + deeper) / times[total]
            if rate > most * (1.0 + 1e-9):
                chosen, most = (*widths, more), rate
            grow((*widths, more), leaves * more, total, deeper, tokens + deeper)

    grow((), 1, 0, 1.0, 1.0)
    return chosen


REACH = 2  # times


class Times:
    """Moving averages of step times by rows.

    Between two numbers of rows that were tried, and beyond the last two, a straight line is taken. As times bend
    upwards that is no more than it will be, so what may pay is tried, and known then; but never more than `REACH`
    times the rows that were tried before.
    """

    def __init__(self, weight: float = 0.2) -> None:
        self.weight = weight
        self._rows: list[int] = []  # in order
        self._seconds: list[float] = []

    def ran(self, rows: int, seconds: float) -> None:
        rows = _about(rows)
        at = bisect_left(self._rows, rows)
        if at < len(self._rows) and self._rows[at] == rows:
            self._seconds[at] += self.weight * (seconds - self._seconds[at])
        else:
            self._rows.insert(at, rows)
            self._seconds.insert(at, seconds)

    def knows(self, rows: int) -> bool:
        return _about(rows) in self._rows

    def seconds(self, rows: int) -> float:
        known, took = self._rows, self._seconds
        if not known:
            return inf
        at = bisect_left(known, rows)
        if rows > REACH * known[-1]:
            return inf
        if at < len(known) and (known[at] == rows or at == 0):
            return took[at]
        if at == len(known):
            if at == 1:
                return took[0]
            at -= 1
            if took[at] < took[at - 1]:
                return took[at]
        share = (rows - known[at - 1]) / (known[at] - known[at - 1])
        return took[at - 1] + share * (took[at] - took[at - 1])


def _about(rows: int) -> int:
    """Few numbers of rows stand for all: beyond eight, those that lie a fifth apart."""
    return rows if rows <= 8 else round(8 * exp(round(log(rows / 8) / log(1.2)) * log(1.2)))


class Hits:
    """How often the guesses of each depth and rank held: averages in which the last ones count most.

    What nothing is known of yet is taken to hold as often as `first` says, by rank, and counts for four trials.
    """

    def __init__(self, depth: int, width: int, first: float = 0.5, keep: float = 0.99) -> None:
        self.keep = keep
        self._tried = [[4.0] * width for _ in range(depth)]
        self._held = [[4.0 * first * 0.4**rank for rank in range(width)] for _ in range(depth)]

    def verified(self, path: Sequence[tuple[int, int]]) -> None:
        """By depth: how many guesses there were, and the rank of the one that held, or -1."""
        for (offered, rank), tried, held in zip(path, self._tried, self._held, strict=False):
            for nth in range(min(offered, len(tried))):
                tried[nth] = tried[nth] * self.keep + 1.0
                held[nth] = held[nth] * self.keep + (nth == rank)

    @property
    def rates(self) -> list[list[float]]:
        """By depth and rank."""
        return [
            [held / tried for held, tried in zip(*of, strict=True)] for of in zip(self._held, self._tried, strict=True)
        ]
