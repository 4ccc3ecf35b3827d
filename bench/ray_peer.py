"""The same small application on plain Ray, on nubes over Ray, and as nubes.tasks: `python bench/ray_peer.py`.

A Ray cluster of two nodes runs on this machine; plain Ray and nubes (with NUBES_ON=ray) use it in turn, round by round,
each from a driver process of its own. Ratios are medians over the rounds of nubes / Ray within a round. Where Ray alone
is better, the reason is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import show_s

HERE = Path(__file__).parent
NUMBERS = 1_000_000  # in an array: 8 MB
SIDES = ("ray", "nubes", "tasks")
Measured = dict[str, float]

HOP = (
    "a call goes from the caller to the control plane, which decides and logs, to the node's agent, to the instance, "
    "and back the same way; Ray's driver keeps a leased worker and talks with it directly"
)
COPIES = (
    "an array is copied from the caller's segment into Ray's store and from there into a segment of the instance's "
    "machine, which makes a call independent of Ray; Ray's driver and workers map one store"
)
ROWS = (  # (key, what, whether more is better, why Ray may be better)
    ("rate", "empty tasks a second", True, HOP),
    ("p50", "one call, p50", False, HOP),
    ("p99", "one call, p99", False, HOP),
    ("argument", "8 MB array as argument", False, COPIES),
    ("result", "8 MB array as result", False, COPIES),
    ("handed", "8 MB array from task to task", False, HOP),
    ("actor_p50", "one call of an actor's method, p50", False, HOP),
    ("actor_rate", "calls of an actor's method a second", True, HOP),
    ("cold", "new worker or instance, until its first answer", False, "Ray keeps started workers in reserve"),
)


def measure(
    call: Callable[[int], Any], many: Callable[[int], Any], argument: Callable[[Any], Any],
    result: Callable[[int], Any], handed: Callable[[int], Any], method: Callable[[int], Any],
    methods: Callable[[int], Any], cold: Callable[[], Any], quick: bool,
) -> Measured:  # fmt: skip
    """What each side is measured by; `many` and `methods` make so many calls at once."""
    import numpy as np

    calls, tasks, arrays, starts = (200, 1_000, 5, 3) if quick else (1_000, 4_000, 15, 8)
    array = np.ones(NUMBERS)
    many(500)
    one = times(lambda: call(1), calls, 100)
    return {
        "rate": tasks / min(times(lambda: many(tasks), 2, 0)),
        "p50": statistics.median(one),
        "p99": sorted(one)[int(0.99 * len(one))],
        "argument": statistics.median(times(lambda: argument(array), arrays, 3)),
        "result": statistics.median(times(lambda: result(NUMBERS), arrays, 3)),
        "handed": statistics.median(times(lambda: handed(NUMBERS), arrays, 3)),
        "actor_p50": statistics.median(times(lambda: method(1), calls, 100)),
        "actor_rate": tasks / min(times(lambda: methods(tasks), 2, 0)),
        "cold": statistics.median(times(cold, starts, 2)),
    }


def times(function: Callable[[], Any], count: int, warm_up: int) -> list[float]:
    samples = []
    for number in range(warm_up + count):
        began = time.perf_counter()
        function()
        if number >= warm_up:
            samples.append(time.perf_counter() - began)
    return samples


def on_ray(address: str, quick: bool) -> Measured:
    import ray
    import ray_apps

    where = {"env_vars": {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}}
    ray.init(address=address, runtime_env=where, logging_level="ERROR", log_to_driver=False)
    noop, size, made = (ray.remote(one) for one in (ray_apps.noop, ray_apps.size, ray_apps.made))
    counter = ray.remote(ray_apps.Counter)
    actor = counter.options(num_cpus=0).remote()

    def cold() -> None:
        new = counter.options(num_cpus=0).remote()
        ray.get(new.add.remote(1))
        ray.kill(new)

    return measure(
        lambda n: ray.get(noop.remote(n)),
        lambda count: ray.get([noop.remote(n) for n in range(count)]),
        lambda array: ray.get(size.remote(array)),
        lambda numbers: ray.get(made.remote(numbers)),
        lambda numbers: ray.get(size.remote(made.remote(numbers))),
        lambda n: ray.get(actor.add.remote(n)),
        lambda count: ray.get([actor.add.remote(1) for _ in range(count)]),
        cold,
        quick,
    )


def on_nubes(address: str, quick: bool) -> Measured:
    with tempfile.TemporaryDirectory(prefix="nubes-bench-") as folder:
        os.environ.update(NUBES_DATA=folder, NUBES_ON="ray", NUBES_ADDRESS=address)
        import ray_apps as apps

        with apps.app.run():
            counter = apps.CloudCounter()
            found = measure(
                apps.cloud_noop.remote,
                lambda count: list(apps.cloud_noop.map(range(count))),
                apps.cloud_size.remote,
                apps.cloud_made.remote,
                apps.cloud_made.then(apps.cloud_size).remote,
                counter.add.remote,
                lambda count: list(counter.add.map([1] * count)),
                apps.once.remote,
                quick,
            )
        from nubes import client

        client.disconnect()
        return found


def on_tasks(address: str, quick: bool) -> Measured:
    import ray_apps as apps

    from nubes import tasks

    noop, size, made = (tasks.task(one) for one in (apps.noop, apps.size, apps.made))
    counters = tasks.actor(apps.Counter)
    with tasks.Pool(workers=4):
        actor = counters.submit()

        def cold() -> None:
            with tasks.Pool(workers=1):
                noop.submit(1).get()

        return measure(
            lambda n: noop.submit(n).get(),
            lambda count: tasks.get([noop.submit(n) for n in range(count)]),
            lambda array: size.submit(array).get(),
            lambda numbers: made.submit(numbers).get(),
            lambda numbers: size.submit(made.submit(numbers)).get(),
            lambda n: actor.add.submit(n).get(),
            lambda count: tasks.get([actor.add.submit(1) for _ in range(count)]),
            cold,
            quick,
        )


@contextlib.contextmanager
def cluster(address: str) -> Iterator[str]:
    """A Ray cluster of two nodes on this machine, unless there is one already."""
    if address:
        yield address
        return
    sys.path.insert(0, str(HERE.parent / "tests"))
    from backends import ray_cluster

    with ray_cluster(2) as made:
        yield made.address


def side(name: str, address: str, quick: bool) -> Measured | None:
    """One side's round, in a process of its own; None if it cannot run here."""
    words = [sys.executable, __file__, "--side", name, "--address", address, *(["--quick"] if quick else [])]
    environment = {**os.environ, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment)
    try:
        found: Measured = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        print(f"  ({name} left out: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]})", file=sys.stderr)
        return None
    return found


def show(rounds: list[dict[str, Measured]]) -> None:
    print(f"\nOne application on a Ray cluster of two nodes of this machine, {len(rounds)} rounds; ratios to plain Ray")
    print(f"  {'':<48}{'':<8}{'Ray':>10} {'nubes/Ray':>10} {'ratio':>7} {'nubes.tasks':>12} {'ratio':>7}")
    reasons: dict[str, list[str]] = {}
    for key, what, more, why in ROWS:
        columns = [statistics.median(one[name][key] for one in rounds) for name in SIDES]
        ratios = [statistics.median(one[name][key] / one["ray"][key] for one in rounds) for name in SIDES[1:]]
        texts = [f"{value:,.0f}" if more else show_s(value) for value in columns]
        print(
            f"  {what:<48}{'more' if more else 'less':<8}{texts[0]:>10} {texts[1]:>10} {ratios[0]:>7.2f}"
            f" {texts[2]:>12} {ratios[1]:>7.2f}"
        )
        if (ratios[0] < 1) == more:
            reasons.setdefault(why, []).append(what)
    print("  (the third column says which is better; nubes.tasks runs on four processes of this machine, without Ray)")
    for why, rows in reasons.items():
        print(f"\n  Ray alone is better in: {'; '.join(rows)}.\n    Why: {why}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="fewer calls of each kind")
    parser.add_argument("--address", default="", help="of a Ray cluster; a new one if not named")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.side:
        sys.path.insert(0, str(HERE))
        found = {"ray": on_ray, "nubes": on_nubes, "tasks": on_tasks}[chosen.side](chosen.address, chosen.quick)
        print(json.dumps(found))
        return
    rounds = []
    with cluster(chosen.address) as address:
        for number in range(chosen.rounds):
            order = SIDES if number % 2 == 0 else SIDES[::-1]
            one = {name: side(name, address, chosen.quick) for name in order}
            if all(one.values()):
                rounds.append({name: found for name, found in one.items() if found is not None})
    if not rounds:
        sys.exit("No round was complete: see above.")
    if chosen.json:
        print(json.dumps(rounds))
    else:
        show(rounds)


if __name__ == "__main__":
    main()
