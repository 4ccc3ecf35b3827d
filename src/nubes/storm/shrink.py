"""From a day that fails to the smallest that does: fewest faults, then simpler kinds, then smaller numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import TypeVar

import msgspec

from nubes.storm.spec import CLOCK, DELAY, DELAYS_S, KILL, KINDS, STEPS_S, Fault, Schedule

T = TypeVar("T")
FEW = 6  # of so many things all subsets are tried


def fewest(things: tuple[T, ...], fails: Callable[[tuple[T, ...]], bool]) -> tuple[T, ...]:
    """A smallest part of `things` that still `fails`, in their order.

    Of a few things no smaller part fails. Of many, delta debugging comes first (Zeller and Hildebrandt, *Simplifying
    and isolating failure-inducing input*, TSE 2002), after which none can be left out.
    """
    if len(things) > FEW:
        things = _debugged(things, fails)
    if len(things) <= FEW:
        for size in range(len(things)):
            for some in combinations(things, size):
                if fails(some):
                    return some
    return things


def _debugged(things: tuple[T, ...], fails: Callable[[tuple[T, ...]], bool]) -> tuple[T, ...]:
    parts = 2
    while len(things) > 1:
        size = -(-len(things) // parts)
        chunks = [(at, at + size) for at in range(0, len(things), size)]
        kept = [things[begin:end] for begin, end in chunks]
        left = [things[:begin] + things[end:] for begin, end in chunks] if parts > 2 else []
        smaller = next((some for some in (*kept, *left) if fails(some)), None)
        if smaller is not None:
            parts = 2 if smaller in kept else max(2, parts - 1)
            things = smaller
        elif parts >= len(things):
            break
        else:
            parts = min(len(things), 2 * parts)
    return things


def smallest(schedule: Schedule, fails: Callable[[Schedule], bool]) -> Schedule:
    """A smallest schedule that still `fails`; nothing that `simpler` knows of it does."""

    def with_faults(faults: tuple[Fault, ...]) -> Schedule:
        return msgspec.structs.replace(schedule, faults=faults)

    schedule = with_faults(fewest(schedule.faults, lambda faults: fails(with_faults(faults))))
    while True:
        better = next((one for one in simpler(schedule) if fails(one)), None)
        if better is None:
            return schedule
        schedule = better


def simpler(schedule: Schedule) -> Iterator[Schedule]:
    """Schedules that are a step simpler, the greatest step first."""
    if schedule.seed:
        yield msgspec.structs.replace(schedule, seed=0)
    for place, fault in enumerate(schedule.faults):
        for one in _simpler(fault):
            faults = (*schedule.faults[:place], one, *schedule.faults[place + 1 :])
            if len({other.point for other in faults}) == len(faults):
                yield msgspec.structs.replace(schedule, faults=faults)


def _simpler(fault: Fault) -> Iterator[Fault]:
    replace = msgspec.structs.replace
    for kind in KINDS[: KINDS.index(fault.kind)]:
        if kind == KILL and fault.call:
            yield replace(fault, kind=KILL, seconds=0.0)
        elif kind == DELAY:
            yield replace(fault, kind=DELAY, seconds=DELAYS_S[0])
    ladder = {DELAY: DELAYS_S, CLOCK: STEPS_S}.get(fault.kind, ())
    if fault.seconds in ladder:
        for seconds in ladder[: ladder.index(fault.seconds)]:
            yield replace(fault, seconds=seconds)
    for attempt in range(1, fault.attempt):
        yield replace(fault, attempt=attempt)
    for after in range(fault.after):
        yield replace(fault, after=after)


def size(schedule: Schedule) -> tuple[float, ...]:
    """What schedules are ordered by, the smallest first."""
    faults = schedule.faults
    kinds = sum(KINDS.index(fault.kind) for fault in faults)
    waits = sum(fault.seconds for fault in faults if fault.kind == DELAY)
    return (len(faults), waits, kinds, sum(fault.after for fault in faults), schedule.seed)
