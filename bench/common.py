"""What every comparison here shares: criteria fixed before the run, a table, an exit code."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Row:
    """One comparison: ours against the peer, as a ratio that must lie on the right side of `limit`."""

    what: str
    ours: str
    peer: str
    ratio: float
    limit: float
    at_least: bool

    @property
    def holds(self) -> bool:
        return self.ratio >= self.limit if self.at_least else self.ratio <= self.limit


def report(title: str, rows: list[Row]) -> None:
    """Prints the rows (as JSON with --json) and exits 1 if one does not hold."""
    if "--json" in sys.argv:
        print(json.dumps([{**asdict(row), "holds": row.holds} for row in rows]))
    else:
        print(f"\n{title}")
        for row in rows:
            wanted = f"{'at least' if row.at_least else 'at most'} {row.limit:g}"
            verdict = "holds" if row.holds else "DOES NOT HOLD"
            print(
                f"  {row.what:<58} ours {row.ours:>12}   {row.peer:>28}   ratio {row.ratio:8.2f} ({wanted}): {verdict}"
            )
    sys.exit(0 if all(row.holds for row in rows) else 1)


def median_of(function: Callable[[], Any], times: int, warm_up: int = 10) -> float:
    """Median seconds of a call."""
    for _ in range(warm_up):
        function()
    samples = []
    for _ in range(times):
        began = time.perf_counter()
        function()
        samples.append(time.perf_counter() - began)
    return statistics.median(samples)


def peer(script: str, *arguments: str) -> dict[str, float] | None:
    """Runs a peer's part in a process of its own; its last line is JSON. None if it cannot run here."""
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=600)
    try:
        answer: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        print(f"  (peer left out: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]})", file=sys.stderr)
        return None
    return answer


def show_s(value: float) -> str:
    return f"{value * 1e6:.0f} us" if value < 1e-3 else f"{value * 1e3:.2f} ms" if value < 1 else f"{value:.2f} s"
