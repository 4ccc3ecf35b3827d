"""How fast replays are: `python bench/replay.py`.

The 500-function sample of Azure Functions 2019 (3.04 million calls) under hybrid-histogram, in a process of its own on
one core; then its first half hour under a fixed window, against a straightforward SimPy model of the same system
(`simpy_model.py`) in turn with ours. Without the trace, a workload made up like it stands in, and the rows say so.
"""

from __future__ import annotations

import os
import statistics
import sys

from common import Row, peer, report
from simpy_model import Model

from nubes.drivers.sim import simulate
from nubes.functions.controller import Functions
from nubes.kernel.errors import NotFound
from nubes.workloads import Workload, load

TRACE, STAND_IN = "azure-functions-2019/500", "azure-like(functions=500,length=8h)"
SLICE_S, KEEP_S, PAIRS = 1800.0, 600.0, 5
EVENTS_A_SECOND, SECONDS, GIB, TIMES_SIMPY = 250_000, 60.0, 1.0, 5.0

FULL = """
import json, resource, sys, time
began = time.perf_counter()
from nubes.drivers.sim import simulate
from nubes.functions.controller import Functions
from nubes.workloads import load
workload = load(sys.argv[1])
outcome = simulate(workload, Functions("hybrid-histogram", cold_start="fresh"))
print(json.dumps({
    "calls": workload.calls, "events": outcome.events, "rate": outcome.events / outcome.wall_s,
    "seconds": time.perf_counter() - began, "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
}))
"""


def main() -> None:
    name = TRACE
    try:
        workload = load(name)
    except NotFound:
        name = STAND_IN
        workload = load(name)
        print(f"{TRACE} is not at hand (NUBES_TRACES): {name} stands in.", file=sys.stderr)
    assert isinstance(workload, Workload)
    rows = whole(name)
    rows.append(against_simpy(workload.until(SLICE_S)))
    report(f"Replay of {name} ({os.cpu_count()} cores, one used)", rows)


def whole(name: str) -> list[Row]:
    """The whole workload under hybrid-histogram: speed, time with loading, memory at its peak."""
    full = peer(FULL, name)
    if full is None:
        sys.exit("The replay did not run.")
    rate, seconds, gib = full["rate"], full["seconds"], full["gib"]
    what = f"{full['calls']:,.0f} calls, hybrid-histogram"
    return [
        Row(f"{what}: events a second", f"{rate:,.0f}", f"goal {EVENTS_A_SECOND:,}", rate / EVENTS_A_SECOND, 1.0, True),
        Row(f"{what}: seconds, with loading", f"{seconds:.1f} s", f"goal {SECONDS:g} s", seconds / SECONDS, 1.0, False),
        Row(f"{what}: memory at its peak", f"{gib:.2f} GiB", f"goal {GIB:g} GiB", gib / GIB, 1.0, False),
    ]


def against_simpy(workload: Workload) -> Row:
    """The same calls through both, in turn; the median of the pairs' ratios. Both must start as many instances."""
    ratios, ours_s, simpy_s = [], [], []
    for _ in range(PAIRS):
        outcome = simulate(workload, Functions(f"fixed-window(keep={KEEP_S:g})", cold_start="fresh"))
        model = Model(workload, KEEP_S)
        simpy_s.append(model.run())
        ours_s.append(outcome.wall_s)
        ratios.append(simpy_s[-1] / ours_s[-1])
        started = int((outcome.lives.function >= 0).sum())
        if started != sum(model.starts):
            sys.exit(f"The models differ: {started} starts here, {sum(model.starts)} in SimPy.")
    rate, simpy_rate = (workload.calls / statistics.median(taken) for taken in (ours_s, simpy_s))
    what = f"{workload.calls:,} calls, fixed window of {KEEP_S:g} s: calls a second"
    return Row(what, f"{rate:,.0f}", f"SimPy {simpy_rate:,.0f}", statistics.median(ratios), TIMES_SIMPY, True)


if __name__ == "__main__":
    main()
