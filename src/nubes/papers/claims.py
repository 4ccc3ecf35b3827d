"""Claims, what must hold of them, and what was measured.

A claim is declared in code, with its criterion, before anything runs; a result is made from it and measured values.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from statistics import median

import msgspec


class Criterion(msgspec.Struct, frozen=True):
    """What a measured value must satisfy, and the words for it."""

    text: str
    low: float = -inf
    high: float = inf
    strict: bool = False  # whether the limits themselves do not hold

    def holds(self, value: float) -> bool:
        return self.low < value < self.high if self.strict else self.low <= value <= self.high


def at_most(limit: float) -> Criterion:
    return Criterion(f"at most {limit:g}", high=limit)


def at_least(limit: float) -> Criterion:
    return Criterion(f"at least {limit:g}", low=limit)


def below(limit: float) -> Criterion:
    return Criterion(f"below {limit:g}", high=limit, strict=True)


def above(limit: float) -> Criterion:
    return Criterion(f"above {limit:g}", low=limit, strict=True)


def between(low: float, high: float) -> Criterion:
    return Criterion(f"from {low:g} to {high:g}", low, high)


class Claim(msgspec.Struct, frozen=True):
    """One thing a paper says that can be measured. `paper` is the paper's own figure, in words; "" if it gives none."""

    text: str
    metric: str
    baseline: str
    criterion: Criterion
    paper: str = ""


class Measured(msgspec.Struct, frozen=True):
    """Over the seeds. All three are None if it could not be measured."""

    median: float | None = None
    min: float | None = None
    max: float | None = None


class Result(msgspec.Struct, frozen=True):
    """What became of one claim. `holds` is judged on the median over the seeds; None if it was not measured."""

    id: str
    claim: str
    metric: str
    baseline: str
    paper: str
    measured: Measured
    workload: str
    mode: str  # live | simulated
    holds: bool | None
    seconds: float


def judge(id: str, claim: Claim, values: Sequence[float], workload: str, mode: str, seconds: float) -> Result:
    """The result of `claim`: its criterion applied to the median of `values`, one for each seed."""
    middle = float(f"{median(values):.12g}")  # 0.55 - 0.5 is to be 0.05, not a little more
    return Result(
        id=id,
        claim=claim.text,
        metric=f"{claim.metric}; holds if the median over seeds is {claim.criterion.text}",
        baseline=claim.baseline,
        paper=claim.paper,
        measured=Measured(_short(middle), _short(min(values)), _short(max(values))),
        workload=workload,
        mode=mode,
        holds=claim.criterion.holds(middle),
        seconds=round(seconds, 2),
    )


def unmeasured(id: str, claim: Claim, why: str, mode: str) -> Result:
    """The result of a claim that could not be measured here."""
    metric = f"{claim.metric}; holds if the median over seeds is {claim.criterion.text}"
    return Result(
        id, claim.text, metric, claim.baseline, claim.paper, Measured(), f"not measured: {why}", mode, None, 0.0
    )


def _short(value: float) -> float:
    """Five digits are more than any of these measurements is worth."""
    return float(f"{value:.5g}")
