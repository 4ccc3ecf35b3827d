"""What this machine has to give."""

from __future__ import annotations

import os

SHARE = 0.8  # of its memory, if nobody says how much


def here() -> tuple[float, int]:
    """CPU cores and bytes of memory."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return float(len(os.sched_getaffinity(0))), int(memory_bytes * SHARE)
