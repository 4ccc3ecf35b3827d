"""Cold starts against bare forks and Ray actors: `python bench/coldstarts.py`.

The physical limit of a start that shares a parent's memory is the kernel's fork of that parent, which is what is
measured beside it.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from common import Row, peer, report, show_s

os.environ.setdefault("NUBES_DATA", tempfile.mkdtemp(prefix="nubes-bench-"))
sys.path.insert(0, str(Path(__file__).parent))

STARTS = 1_000
ROUNDS = 5

RAY_ACTOR = """
import json, time, statistics, os
import ray
ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
@ray.remote(num_cpus=0)
class Actor:
    def sum(self, n):
        import torch
        return n + len(torch.__version__)
out = []
for i in range(4):
    t = time.perf_counter(); a = Actor.remote(); ray.get(a.sum.remote(8)); out.append(time.perf_counter() - t);
    ray.kill(a)
print(json.dumps({"start": statistics.median(out)}))
"""

BARE_TORCH = """
import gc, json, os, statistics, time
import torch
gc.collect(); gc.freeze(); gc.disable()
out = []
for i in range(60):
    r, w = os.pipe()
    t = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        os.write(w, b"x"); os._exit(0)
    os.read(r, 1); out.append(time.perf_counter() - t)
    os.waitpid(pid, 0); os.close(r); os.close(w)
    time.sleep(0.01)
print(json.dumps({"fork": statistics.median(out)}))
"""

BARE_RATE = """
import gc, json, os, sys, time
from nubes.drivers.local import node
sys.path.insert(0, sys.argv[1])
import apps
gc.collect(); gc.freeze(); gc.disable()
best = []
for _ in range(3):
    t = time.perf_counter(); pids = []
    for i in range(1000):
        pid = os.fork()
        if pid == 0: os._exit(0)
        pids.append(pid)
    for pid in pids: os.waitpid(pid, 0)
    best.append(1000 / (time.perf_counter() - t))
print(json.dumps({"rate": sorted(best)[1]}))
"""


def main() -> None:
    from apps import app, needs_torch, once

    torch_starts, torch_forks, rates, bare_rates = [], [], [], []
    with app.run():
        assert needs_torch.remote(8) > 8
        list(once.map(range(100)))
        for _ in range(ROUNDS):  # ours and the bare forks in turn, so that a noisy minute meets both
            for _ in range(20):
                time.sleep(0.05)
                began = time.perf_counter()
                assert needs_torch.remote(8) > 8
                torch_starts.append(time.perf_counter() - began)
            began = time.perf_counter()
            answers = list(once.map(range(STARTS), order_outputs=False))
            rates.append(STARTS / (time.perf_counter() - began))
            assert sorted(answers) == list(range(STARTS)), "a start was lost"
            time.sleep(0.5)
            if bare_torch := peer(BARE_TORCH):
                torch_forks.append(bare_torch["fork"])
            if bare_rate := peer(BARE_RATE, str(Path(__file__).parent)):
                bare_rates.append(bare_rate["rate"])
    start, rate = statistics.median(torch_starts), statistics.median(rates)
    ray = peer(RAY_ACTOR)
    rows = []
    if torch_forks:
        fork = statistics.median(torch_forks)
        rows.append(
            Row(
                "cold start with torch against a bare fork of it",
                show_s(start),
                f"fork {show_s(fork)}",
                start / fork,
                2,
                False,
            )
        )
    if ray:
        rows.append(
            Row(
                "cold start with torch against a Ray actor",
                show_s(start),
                f"Ray {show_s(ray['start'])}",
                ray["start"] / start,
                100,
                True,
            )
        )
    if bare_rates:
        bare = statistics.median(bare_rates)
        rows.append(
            Row(
                "1,000 cold starts at once against bare forks, per second",
                f"{rate:,.0f}",
                f"fork {bare:,.0f}",
                rate / bare,
                0.7,
                True,
            )
        )
    report("cold starts", rows)


if __name__ == "__main__":
    main()
