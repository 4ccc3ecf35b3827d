"""What a data folder may forget: objects that no call refers to, and log segments that a state covers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Set
from pathlib import Path

from nubes.drivers.local import objects, payload
from nubes.functions.controller import Functions

KEEP_LOG_BYTES = 4 << 30  # beyond this, segments that two snapshots cover are dropped, the oldest first
YOUNG_S = 3600.0  # objects this new may belong to a call that is only just being handed in


def sweep(place: str, controller: Functions) -> int:
    """Removes objects in a folder, or at a URL, that belong to no call and no kept answer; returns how many."""
    return remove_unused(place, used(controller))


def used(controller: Functions) -> set[str]:
    """The objects that calls and kept answers refer to."""
    return set(_segments(_payloads(controller)))


def remove_unused(place: str, used: Set[str]) -> int:
    """Removes the objects at `place` that are not in `used`, unless they are young; returns how many."""
    if objects.is_url(place):
        there = list(objects.listed(place))
        oldest = min(time.time(), max((changed for _, changed in there), default=0.0)) - YOUNG_S
        gone = [
            name
            for name, changed in there
            if name.startswith(objects.PREFIX) and f"{place}/{name}" not in used and changed < oldest
        ]
        if gone:
            objects.remove(place, gone)
        return len(gone)
    os.utime(place)
    oldest = os.stat(place).st_mtime - YOUNG_S  # by the clock that dates the files, wherever this process's has jumped
    removed = 0
    for path in Path(place).glob(f"{objects.PREFIX}*"):
        if str(path) not in used and path.stat().st_mtime < oldest:
            path.unlink()
            removed += 1
    return removed


def _payloads(controller: Functions) -> Iterator[bytes]:
    yield from (call.input for call in controller.calls.values())
    yield from (result.output for result in controller.results.values())


def _segments(payloads: Iterable[bytes]) -> Iterator[str]:
    return (payload.segment_of(one) for one in payloads if one[:1] == b"S")
