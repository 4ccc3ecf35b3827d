"""`python -m nubes.drivers.sim.faults`: many seeds on all cores, one seed step by step, or the mutations."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from nubes.drivers.sim.faults.trying import run, story

_CHUNK = 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m nubes.drivers.sim.faults", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds to try")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="tell the story of this one")
    parser.add_argument("--mutations", nargs="*", metavar="NAME", help="see whether faults put into the code are found")
    parser.add_argument(
        "--bundle", metavar="FILE", help="with --seed: what a time-travel bundle of the failure is put in"
    )
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    if options.seed is not None:
        return 1 if story(options.seed, options.bundle) else 0
    if options.mutations is not None:
        from nubes.drivers.sim.faults.scoring import score

        return score(options.mutations, options.seeds, options.workers)
    return _many(range(options.first, options.first + options.seeds), options.workers)


def _many(seeds: range, workers: int) -> int:
    """Tries all seeds and prints those that fail; the exit code is 1 if there is one."""
    began = time.monotonic()
    failed: list[tuple[int, str]] = []
    done = events = 0
    with ProcessPoolExecutor(workers) as pool:
        chunks = [range(first, min(first + _CHUNK, seeds.stop)) for first in range(seeds.start, seeds.stop, _CHUNK)]
        for chunk, results in zip(chunks, pool.map(_chunk, chunks), strict=True):
            for seed, (wrong, count) in zip(chunk, results, strict=True):
                done += 1
                events += count
                if wrong:
                    failed.append((seed, wrong))
                    print(f"\rseed {seed}: {wrong}\n  replay it: make dst SEED={seed}", flush=True)
            if sys.stderr.isatty():
                print(f"\r{done} of {len(seeds)} seeds, {len(failed)} failed", end="", file=sys.stderr, flush=True)
    seconds = time.monotonic() - began
    per_s = f"{done / seconds:.0f} seeds and {events / seconds:.0f} events a second on {workers} cores"
    print(f"\r{done} seeds, {len(failed)} failed, {seconds:.0f} s: {per_s}")
    return 1 if failed else 0


def _chunk(seeds: range) -> list[tuple[str, int]]:
    return list(_results(seeds))


def _results(seeds: range) -> Iterator[tuple[str, int]]:
    for seed in seeds:
        outcome = run(seed)
        yield outcome.wrong, outcome.events


if __name__ == "__main__":
    sys.exit(main())
