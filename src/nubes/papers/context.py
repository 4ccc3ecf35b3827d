"""What a reproduction is given to run with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from nubes.kernel.errors import UsageError
from nubes.kernel.policy import Paper
from nubes.papers.claims import Claim, Result, judge, unmeasured

T = TypeVar("T")
Progress = Callable[[float, str], None]


class Context:
    """Seeds, scale, a trace if one was named, and an empty folder that goes away afterwards.

    Results are made here, from claims that were declared before the run.
    """

    def __init__(
        self, paper: Paper, claims: Sequence[Claim], mode: str, seeds: int, trace: str | None, full: bool, folder: Path,
        progress: Progress | None,
    ) -> None:  # fmt: skip
        self.paper = paper
        self.claims = tuple(claims)
        self.mode = mode
        self.seeds = seeds
        self.trace = trace
        self.full = full
        self.folder = folder
        self.told: list[Claim] = []
        self._progress = progress
        self._since_s = time.monotonic()

    def pick(self, small: T, full: T) -> T:
        """The one for the scale of this run."""
        return full if self.full else small

    def each(self, what: str) -> Iterator[int]:
        """The seeds, saying which one is at work."""
        for seed in range(self.seeds):
            self.say(f"{what}, seed {seed + 1} of {self.seeds}")
            yield seed

    def say(self, what: str) -> None:
        """Tells whoever watches what is going on."""
        if self._progress is not None:
            self._progress(len(self.told) / len(self.claims), what)

    def result(self, claim: Claim, values: Sequence[float], workload: str, mode: str = "") -> Result:
        """The result of `claim` from what was measured, one value for each seed; `mode` where a paper has both."""
        now = time.monotonic()
        took, self._since_s = now - self._since_s, now
        return judge(self.paper.id, self._declared(claim), values, workload, mode or self.mode, took)

    def unmeasured(self, claim: Claim, why: str, mode: str = "") -> Result:
        """Says why `claim` could not be measured here."""
        return unmeasured(self.paper.id, self._declared(claim), why, mode or self.mode)

    def all_unmeasured(self, claims: Iterable[Claim], why: str, mode: str = "") -> Iterator[Result]:
        """Says so of each of them."""
        return (self.unmeasured(claim, why, mode) for claim in claims)

    def _declared(self, claim: Claim) -> Claim:
        if claim not in self.claims:
            raise UsageError(f"{claim.text!r} is not declared.", "Name it in the `claims` of the reproduction.")
        self.told.append(claim)
        return claim
