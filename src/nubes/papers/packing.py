"""How much of a zone is in use when the first request for a whole machine fails: Protean's rules against first fit."""

from __future__ import annotations

from heapq import heappop, heappush
from statistics import mean

import numpy as np

from nubes.cluster.allocation import Allocator
from nubes.cluster.policies.protean import vms
from nubes.cluster.seams import Request
from nubes.kernel.rng import rng
from nubes.papers.zones import CORES, MEMORY, shares, types, zone

MIXES = 5  # of types that are drawn for each seed, as when the first large request fails is much a matter of luck
SHARE, LONG = 0.8, 4.2  # this many VMs live a fifth of the mean, the others this many times the mean


class FirstFit:
    """The first machine with room."""

    def __init__(self, size: int) -> None:
        self.cpu, self.memory = np.full(size, CORES), np.full(size, float(MEMORY))

    def place(self, request: Request) -> int | None:
        room = (self.cpu >= request.cpu) & (self.memory >= request.memory_bytes)
        id = int(room.argmax())
        if not room[id]:
            return None
        self.take(id, request)
        return id

    def take(self, id: int, request: Request, more: int = 1) -> None:
        self.cpu[id] -= more * request.cpu
        self.memory[id] -= more * request.memory_bytes


class Ours:
    """The allocator, in clusters of a hundred machines or more."""

    def __init__(self, size: int, seed: int) -> None:
        self.inventory = zone(size, max(1, size // 500))
        self.allocator = Allocator(self.inventory, vms, rng(seed, "protean packing"))
        self.take = self.inventory.take

    def place(self, request: Request) -> int | None:
        id = self.allocator.choose(request)
        if id is not None:
            self.take(id, request)
        return id


def packed(seed: int, size: int) -> float:
    """Cores in use when the first whole machine is refused, Protean / first fit; mean over mixes of types."""
    return mean(held(Ours(size, seed), size, seed, mix) / held(FirstFit(size), size, seed, mix) for mix in range(MIXES))


def held(allocator: Ours | FirstFit, size: int, seed: int, mix: int) -> float:
    draw = rng(seed, "protean types", mix)
    kinds = types(draw)
    often = shares(kinds, draw)
    usual = sum(kind.cpu * share for kind, share in zip(kinds, often, strict=True)) / sum(often)
    ends: list[tuple[float, int, int, Request]] = []
    now = cores = 0.0
    number = 0
    while True:
        number += 1
        now += draw.expovariate((0.4 + 0.12 * now) * size * CORES / usual)  # the mean lifetime is 1
        request = draw.choices(kinds, often)[0]
        end = now + draw.expovariate(1.0 / (0.2 if draw.random() < SHARE else LONG))
        while ends and ends[0][0] <= now:
            _, _, id, gone = heappop(ends)
            allocator.take(id, gone, -1)
            cores -= gone.cpu
        placed = allocator.place(request)
        if placed is not None:
            heappush(ends, (end, number, placed, request))
            cores += request.cpu
        elif request is kinds[0]:
            return cores
