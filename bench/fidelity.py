"""How true replays are to live runs: `python bench/fidelity.py [--recordings N] [--seconds S]`.

Each recording is a live run of 24 functions under one policy. Its replay states its own gap. The same calls are then
made
live under a second policy, and the order in which the replay puts the two is held against the order they really had.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Row, report

FUNCTIONS = 24
PAIRS = [
    ("fixed-window(keep=0.5s)", "fixed-window(keep=3s)"),
    ("fixed-window(keep=1s)", "no-unload"),
    ("fixed-window(keep=2s)", "fixed-window(keep=1s)"),
    ("cidre", "fixed-window(keep=0.5s)"),
    ("fixed-window(keep=1s)", "timer-aware(keep=1s)"),
]
RANKED = ("cold_share", "p95", "mean")


def functions(chance: random.Random) -> Any:
    """An app of functions that take their time to start and to run; closures, so they travel by value."""
    import nubes

    app = nubes.App("fidelity")
    made = []
    for number in range(FUNCTIONS):
        start_s, exec_s = chance.uniform(0.05, 0.2), chance.uniform(0.01, 0.08)

        def enter(self: Any, start_s: float = start_s) -> None:
            time.sleep(start_s)

        def work(self: Any, share: float, exec_s: float = exec_s) -> float:
            time.sleep(exec_s * share)
            return share

        body = {"enter": nubes.enter()(enter), "work": nubes.method()(work)}
        made.append(app.cls(name=f"f{number}", serialized=True, cpu=0.01)(type(f"F{number}", (), body)))
    return app, made


def arrivals(chance: random.Random, seconds: float) -> list[tuple[float, int, float]]:
    """(time, function, share of its usual length): a third of the functions tick, the others come at random or in
    bursts."""
    calls = []
    for number in range(FUNCTIONS):
        mean, at = chance.uniform(0.3, 4.0), chance.uniform(0, 2.0)
        while at < seconds:
            burst = chance.choice([1, 1, 1, 4]) if number % 3 == 2 else 1
            calls += [(at + chance.uniform(0, 0.02), number, chance.uniform(0.6, 1.4)) for _ in range(burst)]
            at += mean if number % 3 == 0 else chance.expovariate(1 / mean)
    return sorted(calls)


def live(policy: str, seed: int, seconds: float) -> Path:
    """Makes the calls of `seed` under `policy`; returns the data folder with the recording."""
    from nubes import client

    folder = Path(tempfile.mkdtemp(prefix="nubes-fidelity-"))
    os.environ["NUBES_DATA"], os.environ["NUBES_KEEP_ALIVE"] = str(folder), policy
    client.disconnect()
    app, made = functions(random.Random(seed))
    calls = arrivals(random.Random(seed + 1), seconds)

    async def play() -> None:
        pending = []
        began = time.monotonic()
        for at, number, share in calls:
            delay = began + at - time.monotonic()
            if delay > 0:
                await asyncio.sleep(delay)
            pending.append(asyncio.ensure_future(made[number]().work.remote.aio(share)))
        await asyncio.gather(*pending)

    with app.run():
        time.sleep(1.5)  # parents of the process tree grow
        asyncio.run(play())
    client.disconnect()
    return folder


def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("--recordings", type=int, default=1)
    words.add_argument("--seconds", type=float, default=20.0)
    words.add_argument("--json", action="store_true")
    chosen = words.parse_args()

    from nubes.replay import ranking, replay
    from nubes.replay.configuration import Configuration
    from nubes.replay.report import METRICS
    from nubes.workloads.recording import load_recording

    gaps: dict[str, list[float]] = {"cold_share": [], "p50": [], "p95": []}
    dared = wrong = 0
    for number in range(chosen.recordings):
        first, second = PAIRS[number % len(PAIRS)]
        recording = load_recording(live(first, 100 * number, chosen.seconds))
        result = replay(recording, [Configuration(keep_alive=first), Configuration(keep_alive=second)], jobs=1)
        assert result.gap is not None
        for name in gaps:
            gaps[name].append(abs(result.gap.gap[name]))
        line = f"recording {number + 1}: {recording.workload.calls} calls under {first}; gap " + ", ".join(
            f"{name} {result.gap.gap[name]:+.2%}" for name in gaps
        )
        if chosen.recordings > 1:
            truth = load_recording(live(second, 100 * number, chosen.seconds))
            real = {
                first: result.gap.measured,
                second: replay(truth, [Configuration(keep_alive=second)], jobs=1).gap.measured,
            }  # type: ignore[union-attr]
            for metric in RANKED:
                order = ranking(result, metric)
                if len(order) == 2:
                    better, worse = order[0][0], order[1][0]
                    dared += 1
                    was_wrong = METRICS[metric](real[better]) > METRICS[metric](real[worse])
                    wrong += was_wrong
                    line += f"; {metric}: {better} first ({'WRONG' if was_wrong else 'right'})"
                else:
                    line += f"; {metric}: not ranked"
        if not chosen.json:
            print(line, flush=True)
    limits = {"cold_share": 0.05, "p50": 0.10, "p95": 0.10}
    rows = []
    for name, values in gaps.items():
        middle = statistics.median(values)
        rows.append(Row(f"gap in {name} (median of recordings)", f"{middle:.2%}", "", middle, limits[name], False))
    if chosen.recordings > 1:
        rows.append(
            Row("orders named wrongly, of those named", f"{wrong} of {dared}", "", wrong / max(1, dared), 0.05, False)
        )
    report("fidelity of replays", rows)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
