"""XFaaS beyond one machine: locality groups of workers, and how much of each region's load other regions pull."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Footprint(NamedTuple):
    """What a function takes of a worker: code and data it keeps resident, and CPU it uses (CPU-seconds a second)."""

    memory_bytes: float
    load: float


class Group(NamedTuple):
    """Functions that run on the same workers, and on no others."""

    functions: tuple[str, ...]
    workers: tuple[int, ...]


def locality_groups(functions: Mapping[str, Footprint], workers: int, groups: int) -> list[Group]:
    """Partitions functions and workers (numbered from 0) into at most `groups` groups that match.

    Functions go, heaviest first, to the group whose fuller share (of all memory, of all load) stays smallest, so that
    heavy ones are spread; workers follow the groups' loads, at least one each.
    """
    groups = max(1, min(groups, workers, len(functions)))
    memory = sum(f.memory_bytes for f in functions.values()) or 1.0
    load = sum(f.load for f in functions.values()) or 1.0
    members: list[list[str]] = [[] for _ in range(groups)]
    memories, loads = [0.0] * groups, [0.0] * groups
    heaviest = sorted(functions, key=lambda n: (-max(functions[n].memory_bytes / memory, functions[n].load / load), n))
    for name in heaviest:
        more = Footprint(functions[name].memory_bytes / memory, functions[name].load / load)
        to = min(range(groups), key=lambda g: (max(memories[g] + more.memory_bytes, loads[g] + more.load), g))
        members[to].append(name)
        memories[to] += more.memory_bytes
        loads[to] += more.load
    bounds = [0]
    for count in shares(loads, workers):
        bounds.append(bounds[-1] + count)
    return [Group(tuple(members[g]), tuple(range(bounds[g], bounds[g + 1]))) for g in range(groups)]


def shares(weights: Sequence[float], total: int) -> list[int]:
    """`total` things dealt out by weight, at least one each; what rounding leaves goes to the largest remainders."""
    whole = sum(weights)
    exact = [total * weight / whole if whole else total / len(weights) for weight in weights]
    dealt = [max(1, int(part)) for part in exact]
    while sum(dealt) != total:
        step = 1 if sum(dealt) < total else -1
        able = [g for g in range(len(dealt)) if dealt[g] + step >= 1]
        dealt[max(able, key=lambda g: (step * (exact[g] - dealt[g]), -g))] += step
    return dealt


def two_choices(workers: Sequence[int], loads: Mapping[int, float], rng: random.Random) -> int:
    """The less loaded of two workers drawn from `workers`; the only one if there is no second."""
    if len(workers) == 1:
        return workers[0]
    first, second = rng.sample(workers, 2)
    return first if loads.get(first, 0.0) <= loads.get(second, 0.0) else second


def pull_fractions(
    demand: Sequence[float], capacity: Sequence[float], distance: Sequence[Sequence[float]]
) -> list[list[float]]:
    """`pulled[i][j]`: the share of the calls queued in region j that region i's schedulers pull.

    Starts local-only and moves load from regions above the mean utilisation to regions below it, nearest pairs first,
    until all are even. `demand` and `capacity` in CPU-seconds a second; a region without capacity runs nothing
    itself.
    """
    regions = range(len(demand))
    mean = sum(demand) / sum(capacity)
    spare = [mean * capacity[i] - demand[i] for i in regions]
    moved = [[demand[j] if i == j else 0.0 for j in regions] for i in regions]
    pairs = sorted((distance[i][j], i, j) for i in regions for j in regions if spare[i] > 0 > spare[j])
    for _, i, j in pairs:
        flow = min(spare[i], -spare[j])
        if flow > 0.0:
            moved[i][j] += flow
            moved[j][j] -= flow
            spare[i] -= flow
            spare[j] += flow
    local = [[float(i == j) for j in regions] for i in regions]
    return [[moved[i][j] / demand[j] if demand[j] else local[i][j] for j in regions] for i in regions]
