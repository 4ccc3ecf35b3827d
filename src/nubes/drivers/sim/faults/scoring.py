"""The score of the simulation itself: how many of the mutations it notices, and how soon."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from nubes.drivers.sim.faults.mutations import MUTATIONS, applied, find
from nubes.drivers.sim.faults.trying import run


def caught(name: str, seeds: int) -> tuple[int, str]:
    """The first seed that notices a mutation, and what it says; (-1, "") if none of the first `seeds` does."""
    with applied(find(name)):
        for seed in range(seeds):
            wrong = run(seed).wrong
            if wrong:
                return seed, wrong
    return -1, ""


def score(names: Sequence[str], seeds: int, workers: int) -> int:
    """Prints the score of the mutations of these names (none: of all); the exit code is 1 if one is not noticed."""
    chosen = list(names) or [mutation.name for mutation in MUTATIONS]
    missed = 0
    with ProcessPoolExecutor(workers) as pool:
        for name, (seed, wrong) in zip(chosen, pool.map(partial(caught, seeds=seeds), chosen), strict=True):
            missed += seed < 0
            print(f"{name}: {f'seed {seed}: {wrong[:150]}' if seed >= 0 else 'NOT NOTICED'}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} mutations are noticed within {seeds} seeds.")
    return 1 if missed else 0
