"""Accepting calls for good, with the state in a folder and in PostgreSQL: `python bench/state.py [--rounds N]`.

A call counts once it would survive a power cut. Rounds on either take turns; what is printed are medians over the
rounds, and their ratio. Without NUBES_DATABASE a PostgreSQL server is started on this machine, on the same disk.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from common import show_s

import nubes
from nubes import client

THREADS = 16
WARM_UP = 50

app = nubes.App("bench-state")


@app.function(max_instances=1)
def waits(n: int) -> None:
    """Holds its only instance, so that what is measured is acceptance alone."""
    time.sleep(3600)


class Measured(NamedTuple):
    latency_s: float  # p50 of one caller
    rate: float  # accepted a second, of many


@contextlib.contextmanager
def cloud(database: str) -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="nubes-bench-") as folder:
        os.environ.update(NUBES_DATA=folder, NUBES_DATABASE=database)
        client.connect()
        app.deploy()
        try:
            yield
        finally:
            client.disconnect()


def measure(database: str, seconds: float) -> Measured:
    with cloud(database):
        samples = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(samples) < 2 * WARM_UP:
            began = time.perf_counter()
            waits.spawn(1)
            samples.append(time.perf_counter() - began)
        accepted = [0] * THREADS
        end = time.perf_counter() + seconds

        def load(thread: int) -> None:
            while time.perf_counter() < end:
                waits.spawn(thread)
                accepted[thread] += 1

        threads = [threading.Thread(target=load, args=(n,)) for n in range(THREADS)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return Measured(statistics.median(samples[WARM_UP:]), sum(accepted) / (time.perf_counter() - began))


@contextlib.contextmanager
def databases() -> Iterator[Iterator[str]]:
    """URLs of databases that may be written to."""
    given = os.environ.get("NUBES_DATABASE")
    if given:
        yield iter(lambda: given, None)
        return
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from backends import Postgres

    server = Postgres(fsync=True)
    try:
        yield iter(server.new, None)
    finally:
        server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each of the two parts of a round")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    folder, database = [], []
    with databases() as urls:
        for _ in range(chosen.rounds):
            folder.append(measure("", chosen.seconds))
            database.append(measure(next(urls), chosen.seconds))
    latencies = [statistics.median(m.latency_s for m in one) for one in (folder, database)]
    rates = [statistics.median(m.rate for m in one) for one in (folder, database)]
    if chosen.json:
        print(json.dumps({"latency_s": latencies, "accepted_a_second": rates, "rounds": chosen.rounds}))
        return
    print(f"\nCalls accepted for good: the data folder and PostgreSQL, {chosen.rounds} rounds on either")
    print(f"  {'':<34} {'folder':>12} {'PostgreSQL':>12} {'ratio':>8}")
    print(f"  {'accepted a second, ' + str(THREADS) + ' callers':<34} {rates[0]:>12,.0f} {rates[1]:>12,.0f} "
          f"{rates[1] / rates[0]:>8.2f}")  # fmt: skip
    print(f"  {'p50 until accepted, one caller':<34} {show_s(latencies[0]):>12} {show_s(latencies[1]):>12} "
          f"{latencies[1] / latencies[0]:>8.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
