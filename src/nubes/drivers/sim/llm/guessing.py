"""Guessed tokens in virtual time: which hold is drawn, from how often guesses of each depth and rank do."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING

from nubes.llm.speculative import slots
from nubes.llm.speculative.planner import size

if TYPE_CHECKING:
    from nubes.llm.scheduling.scheduler import Scheduler
    from nubes.llm.scheduling.sequence import Sequence
    from nubes.llm.scheduling.step import Step


@dataclass(slots=True)
class Guessing:
    """`hits[i][r]`: how likely the token at depth i is the r-th guess there, if all before it held; the last for more.

    `draft_s`: seconds to guess one level deeper, for all sequences together.
    """

    hits: Many[Many[float]]
    draft_s: float = 0.0
    draw: Random = field(default_factory=lambda: Random(0))
    offered: int = 0  # sequences that something was guessed for
    held: int = 0  # guesses of these that held
    widths: tuple[int, ...] = ()  # of the step that is under way

    def add(self, scheduler: Scheduler, step: Step) -> float:
        """Adds guesses to a step, whole trees as far as there is memory. Seconds that drafting takes."""
        widths = slots.widths(scheduler, step)
        deepest = 0
        for sequence in scheduler.state.decoding.values() if widths else ():
            deep = min(len(widths), sequence.foreseen - sequence.generated - 1)
            if deep > 0 and slots.guess(scheduler, step, sequence, size(widths[:deep])):
                deepest = max(deepest, deep)
        self.widths = widths
        return deepest * self.draft_s

    def verify(self, scheduler: Scheduler, step: Step) -> list[tuple[Sequence, int]]:
        """Each sequence of a complete step for which something was guessed, and how many guesses held."""
        told = []
        for guess in step.guesses:
            path: list[tuple[int, int]] = []
            rows, leaves = 0, 1
            for depth, width in enumerate(self.widths):
                leaves *= width
                rows += leaves
                if rows > guess.rows or (path and path[-1][1] < 0):
                    break
                path.append((width, self._rank(depth, width)))
            tokens = sum(rank >= 0 for _, rank in path)
            self.offered += 1
            self.held += tokens
            slots.accept(scheduler.state, guess, tokens)
            scheduler.speculation.verified(path)
            told.append((guess.sequence, tokens))
        return told

    def _rank(self, depth: int, width: int) -> int:
        at = self.draw.random()
        rates = self.hits[min(depth, len(self.hits) - 1)][:width]
        return next((rank for rank, upto in enumerate(accumulate(rates)) if at < upto), -1)
