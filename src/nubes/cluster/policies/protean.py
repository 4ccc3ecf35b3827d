"""Protean's rules: filter, then prefer in strict order, with packing at whatever is scarce."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import ceil, floor, inf
from typing import Any

from nubes.cluster.allocation import Allocator, Cluster, Inventory, Rules, Weights
from nubes.cluster.policies.simple import NEAR_BYTES, apart, code_there, inputs_there
from nubes.cluster.seams import MachineView, Placement, Preference, Request, Validator
from nubes.kernel.policy import Paper, policy
from nubes.kernel.rng import rng

PAPER = Paper("protean", "Protean", "Protean: VM Allocation Service at Scale", "OSDI 2020")
BUCKETS = 16  # of what is left free on a machine
FULLNESS = 32  # of a cluster's use
EVICTED = 8  # of the share of a machine's memory that idle instances would have to give back
SIZES = ("cpu", "memory_bytes", "gpu")


def _fits(r: Request, m: MachineView) -> bool:
    """`MachineView.room`, written out: it is asked more often than anything else."""
    return (
        m.cpu_used + r.cpu <= m.cpu and m.memory_used + r.memory_bytes <= m.memory_bytes and m.gpu_used + r.gpu <= m.gpu
    )


fits = Validator("fits", SIZES, _fits)
in_service = Validator("in service", (), lambda r, m: not m.draining)
occupied = Preference("not empty", (), lambda r, m: 0.0 if m.holds else 1.0)


def _share(size: float, of: float) -> float:
    return size / of if 0 < of < inf else 0.0


def packing(weights: Weights) -> Preference:
    """Best fit in several dimensions: the free shares afterwards, weighed, in sixteenths of what they could be."""
    w_cpu, w_memory, w_gpu = weights

    def score(r: Request, m: MachineView) -> float:
        left = most = 0.0
        if 0 < m.cpu < inf:
            left += w_cpu * max(0.0, m.cpu - m.cpu_used - r.cpu) / m.cpu
            most += w_cpu
        if 0 < m.memory_bytes < inf:
            left += w_memory * max(0.0, m.memory_bytes - m.memory_used - r.memory_bytes) / m.memory_bytes
            most += w_memory
        if 0 < m.gpu < inf:
            left += w_gpu * max(0.0, m.gpu - m.gpu_used - r.gpu) / m.gpu
            most += w_gpu
        return floor(BUCKETS * left / most) if most else 0.0

    return Preference("packing", SIZES, score)


def _emptiness(r: Request, m: MachineView) -> float:
    """Full clusters first, so that some stay empty for what is large."""
    assert isinstance(m, Cluster)
    return -floor(FULLNESS * m.fullness)


def _evicted(r: Request, m: MachineView) -> float:
    """What idle instances on it would have to give back."""
    short = m.memory_used + r.memory_bytes - m.memory_bytes
    return ceil(EVICTED * _share(short, m.memory_bytes)) if short > 0 else 0.0


def _bytes_outside(r: Request, m: MachineView) -> float:
    assert isinstance(m, Cluster)
    return sum(size for where, size in r.near if where not in m.machines) // NEAR_BYTES


fullest_cluster = Preference("fullest cluster", (), _emptiness)
least_evicted = Preference("least evicted", ("memory_bytes",), _evicted)
inputs_in_zone = Preference("inputs in its zone", ("near",), _bytes_outside)


@lru_cache(maxsize=512)
def vms(weights: Weights) -> tuple[Rules, Rules]:
    """The rules for what stays where it is put: virtual machines, jobs, tasks."""
    clusters = Rules([fits], [apart, fullest_cluster])
    return clusters, Rules([fits, in_service], [apart, occupied, packing(weights)])


@lru_cache(maxsize=512)
def instances(weights: Weights) -> tuple[Rules, Rules]:
    """The rules for functions: every machine that is asked about can make room, but may have to evict for it."""
    clusters = Rules([], [apart, inputs_in_zone, fullest_cluster])
    return clusters, Rules([], [apart, least_evicted, inputs_there, occupied, packing(weights), code_there])


@policy("protean", paper=PAPER)
class Protean(Placement):
    """Zones, then machines: replicas apart, inputs near, few evictions, no empty machine, packed at what is scarce."""

    def __init__(self) -> None:
        self.draw = rng(0, "protean")
        self._forget()

    def _forget(self) -> None:
        self.inventory = Inventory()
        self.allocator = Allocator(self.inventory, instances, self.draw)
        self.seen: dict[int, tuple[Any, ...]] = {}

    def choose(self, request: Request, machines: Sequence[MachineView], now: float) -> MachineView | None:
        seen = {m.id: _signature(m) for m in machines}
        for id in self.seen.keys() - seen.keys():
            self.inventory.drop(id)
        for m in machines:
            if self.seen.get(m.id) != seen[m.id]:
                self.inventory.put(m)
        self.seen = seen
        chosen = self.allocator.choose(request)
        return next((m for m in machines if m.id == chosen), None)

    def scores(
        self, question: str, request: Request, machines: Sequence[MachineView], now: float
    ) -> list[tuple[str, float]]:
        """How much of each machine would be left free, in sixteenths."""
        score = packing((1.0, 1.0, 1.0)).score
        return [(f"machine {m.id}", score(request, m)) for m in machines]

    # Decisions are the same without the caches, so these are no part of its state.

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("inventory", "allocator", "seen")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


def _signature(m: MachineView) -> tuple[Any, ...]:
    """What tells whether a machine has changed, or is another of the same name."""
    return m, m.changes, m.cpu_used, m.memory_used, m.gpu_used, m.cpu, m.memory_bytes, m.gpu, m.zone
