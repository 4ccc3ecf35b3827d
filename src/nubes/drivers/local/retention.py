"""What a data folder may forget: objects that no call refers to, and log segments that a state covers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from nubes.drivers.local import payload
from nubes.functions.controller import Functions

KEEP_LOG_BYTES = 4 << 30  # beyond this, segments that two snapshots cover are dropped, the oldest first
YOUNG_S = 3600.0  # objects this new may belong to a call that is only just being handed in


def log_is_large(folder: Path) -> bool:
    return sum(path.stat().st_size for path in folder.glob("*.log")) > KEEP_LOG_BYTES


def sweep(folder: Path, controller: Functions) -> int:
    """Removes objects in `folder` that belong to no call and no kept answer; returns how many."""
    used = set(_segments(_payloads(controller)))
    removed = 0
    oldest = time.time() - YOUNG_S
    for path in folder.iterdir():
        if str(path) not in used and path.stat().st_mtime < oldest:
            path.unlink()
            removed += 1
    return removed


def _payloads(controller: Functions) -> Iterator[bytes]:
    yield from (call.input for call in controller.calls.values())
    yield from (result.output for result in controller.results.values())


def _segments(payloads: Iterable[bytes]) -> Iterator[str]:
    return (payload.segment_of(one) for one in payloads if one[:1] == b"S")
