"""Warm calls, maps and large arguments against Ray and Dask: `python bench/calls.py`.

The physical limit of a call through a control plane is two round trips between processes; a bare one over a socket
pair is
printed beside it. The limit of a large argument is one copy into memory that the other side can see.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from pathlib import Path

from common import Row, median_of, peer, report, show_s

os.environ.setdefault("NUBES_DATA", tempfile.mkdtemp(prefix="nubes-bench-"))
sys.path.insert(0, str(Path(__file__).parent))

MAP = 10_000

RAY = """
import json, time, statistics, os
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
import ray
ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
@ray.remote
class Actor:
    def noop(self, x): return x
@ray.remote
def noop(x): return x
actor = Actor.remote()
for i in range(100): ray.get(noop.remote(i)); ray.get(actor.noop.remote(i))
def med(f):
    out = []
    for i in range(1000):
        t = time.perf_counter(); f(i); out.append(time.perf_counter() - t)
    return statistics.median(out)
call = med(lambda i: ray.get(noop.remote(i)))
actor_call = med(lambda i: ray.get(actor.noop.remote(i)))
rates = []
for _ in range(3):
    t = time.perf_counter(); ray.get([noop.remote(i) for i in range(10_000)]); rates.append(10_000 /
    (time.perf_counter() - t))
print(json.dumps({"call": call, "actor_call": actor_call, "rate": statistics.median(rates)}))
"""

DASK = """
import json, time, statistics
from distributed import Client
if __name__ == "__main__":
    client = Client(n_workers=2, threads_per_worker=1, dashboard_address=None)
    def noop(x): return x
    for i in range(30): client.submit(noop, -i - 1, pure=False).result()
    out = []
    for i in range(200):
        t = time.perf_counter(); client.submit(noop, i, pure=False).result(); out.append(time.perf_counter() - t)
    t = time.perf_counter()
    client.gather(client.map(noop, range(3_000), pure=False))
    rate = 3_000 / (time.perf_counter() - t)
    print(json.dumps({"call": statistics.median(out), "rate": rate}))
    client.close()
"""


def bare_round_trip() -> float:
    """A byte to another process and back."""
    here, there = socket.socketpair()
    if os.fork() == 0:
        here.close()
        while data := there.recv(64):
            there.send(data)
        os._exit(0)
    there.close()

    def trip() -> None:
        here.send(b"x")
        here.recv(64)

    return median_of(trip, 5_000, 500)


def main() -> None:
    import numpy as np
    from apps import app, noop, shape

    trip = bare_round_trip()
    with app.run():
        warm = median_of(lambda: noop.remote(1), 5_000, 200)
        rates = []
        for _ in range(5):
            began = time.perf_counter()
            assert list(noop.map(range(MAP))) == list(range(MAP))
            rates.append(MAP / (time.perf_counter() - began))
        rate = sorted(rates)[2]
        array = np.random.default_rng(0).random(12_500_000)
        target = np.empty_like(array)
        copy = median_of(lambda: np.copyto(target, array), 20, 3)
        large = median_of(lambda: shape.remote(array), 20, 3)
    ray, dask = peer(RAY), peer(DASK)
    print(
        f"two bare round trips between processes: {show_s(2 * trip)}; "
        f"a warm call takes {warm / (2 * trip):.1f} times that"
    )
    rows = []
    if ray:
        rows += [
            Row(
                "warm call against Ray's task",
                show_s(warm),
                f"Ray {show_s(ray['call'])}",
                warm / ray["call"],
                1 / 15,
                False,
            ),
            Row(
                "warm call against Ray's actor",
                show_s(warm),
                f"Ray {show_s(ray['actor_call'])}",
                warm / ray["actor_call"],
                1,
                False,
            ),
            Row(
                "map of 10,000 no-ops against Ray, per second",
                f"{rate:,.0f}",
                f"Ray {ray['rate']:,.0f}",
                rate / ray["rate"],
                15,
                True,
            ),
        ]
    if dask:
        rows += [
            Row(
                "warm call against Dask",
                show_s(warm),
                f"Dask {show_s(dask['call'])}",
                warm / dask["call"],
                1 / 15,
                False,
            ),
            Row(
                "map against Dask, per second",
                f"{rate:,.0f}",
                f"Dask {dask['rate']:,.0f}",
                rate / dask["rate"],
                15,
                True,
            ),
        ]
    rows.append(
        Row("100 MB argument against one memory copy", show_s(large), f"copy {show_s(copy)}", large / copy, 2, False)
    )
    report("calls", rows)


if __name__ == "__main__":
    main()
