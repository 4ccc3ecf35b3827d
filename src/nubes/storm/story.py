"""A schedule and its day in words."""

from __future__ import annotations

from collections.abc import Iterator

from nubes.storm.attempts import describe
from nubes.storm.spec import Outcome, Schedule


def faults(schedule: Schedule) -> list[str]:
    """One line for each fault."""
    return [f"{number}. {describe(fault)}" for number, fault in enumerate(schedule.faults, 1)] or ["no fault at all"]


def timeline(outcome: Outcome) -> Iterator[str]:
    """What happened, line by line; the time stands where it changes."""
    shown = ""
    for at, depth, what in outcome.story:
        time = f"{at:.2f} s"
        yield f"{time if time != shown else '':>10}  {'  ' * depth}{what}"
        shown = time
