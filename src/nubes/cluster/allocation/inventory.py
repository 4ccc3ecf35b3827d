"""The machines of a zone, by cluster, and a log of which of them changed: caches read it, and so do agents."""

from __future__ import annotations

from collections.abc import Hashable
from math import floor, isfinite
from typing import Generic, TypeVar

from nubes.cluster.seams import MachineView, Request

K = TypeVar("K", bound=Hashable)
Units = tuple[int, int, int]
Weights = tuple[float, float, float]  # of CPU, memory and GPU

UNIT = 2**20  # sums are kept in whole parts of one CPU, so that they do not depend on the order of changes
NOTHING = (0, 0, 0)
STEPS = 8  # in which a resource grows scarce


class Log(Generic[K]):
    """What changed, in order. Readers keep a position; those that fall behind by more than `limit` start over."""

    def __init__(self, limit: int = 4096) -> None:
        self.limit = limit
        self.begin = 0  # position of the oldest entry that is kept
        self.entries: list[K] = []

    @property
    def end(self) -> int:
        return self.begin + len(self.entries)

    def note(self, id: K) -> None:
        self.entries.append(id)
        if len(self.entries) > 2 * self.limit:
            del self.entries[: self.limit]
            self.begin += self.limit

    def since(self, position: int) -> set[K] | None:
        """What changed from `position` on; None: it is too long ago, anything may have."""
        return set(self.entries[position - self.begin :]) if position >= self.begin else None


class Cluster(MachineView):
    """Machines that are ranked together. Rules see it as one large machine: the sum of them."""

    __slots__ = ("fullness", "log", "machines", "sizes", "used")

    def __init__(self, zone: str) -> None:
        super().__init__(-1, 0.0, 0, zone=zone)
        self.machines: dict[int, MachineView] = {}
        self.log: Log[int] = Log()
        self.sizes = self.used = NOTHING
        self.fullness = 0.0  # the share in use of what is scarcest, kept here as every class of requests asks for it

    def add(self, m: MachineView, sign: int) -> None:
        """Counts a machine in, or out."""
        self.sizes = cpu, self.memory_bytes, gpu = _sum(self.sizes, _sizes(m), sign)
        self.cpu, self.gpu = cpu / UNIT, gpu / UNIT
        self.use(_used(m), sign)
        for mine, its in ((self.holds, m.holds), (self.groups, m.groups)):
            for key, count in its.items():
                mine[key] = mine.get(key, 0) + sign * count
                if not mine[key]:
                    del mine[key]

    def use(self, used: Units, sign: int = 1) -> None:
        """Counts what is promised on a machine."""
        self.used = cpu, self.memory_used, gpu = _sum(self.used, used, sign)
        self.cpu_used, self.gpu_used = cpu / UNIT, gpu / UNIT
        self.fullness = max(
            [used / size for used, size in zip(self.used, self.sizes, strict=True) if size], default=0.0
        )


def _sum(a: Units, b: Units, sign: int) -> Units:
    return a[0] + sign * b[0], a[1] + sign * b[1], a[2] + sign * b[2]


def _sizes(m: MachineView) -> Units:
    """What a machine adds to the sums. One without a limit has none of it to be scarce."""
    cpu, memory, gpu = (size if isfinite(size) else 0.0 for size in (m.cpu, m.memory_bytes, m.gpu))
    return int(cpu * UNIT), int(memory), int(gpu * UNIT)


def _used(m: MachineView) -> Units:
    return int(m.cpu_used * UNIT), m.memory_used, int(m.gpu_used * UNIT)


class Inventory:
    """Machines by id and clusters by zone. The views in it are its own: copies of what `put` is given."""

    def __init__(self) -> None:
        self.machines: dict[int, MachineView] = {}
        self.clusters: dict[str, Cluster] = {}  # those with machines
        self.known: dict[str, Cluster] = {}  # and those that had some: who reads their logs may do so still
        self.cluster_log: Log[str] = Log()  # clusters that changed
        self.log: Log[int] = Log(65_536)  # machines that changed, for agents with copies of their own
        self.sizes = self.used = NOTHING

    def put(self, machine: MachineView) -> None:
        """A machine joins, or has changed. `machine` is copied."""
        if machine.id in self.machines:
            self.drop(machine.id)
        m = machine.freeze()
        cluster = self.known.get(m.zone)
        if cluster is None:
            cluster = self.known[m.zone] = Cluster(m.zone)
        self.clusters[m.zone] = cluster
        self.machines[m.id] = cluster.machines[m.id] = m
        self._changed(m, cluster, 1)

    def drop(self, id: int) -> None:
        """A machine leaves."""
        m = self.machines.pop(id)
        cluster = self.clusters[m.zone]
        del cluster.machines[id]
        self._changed(m, cluster, -1)
        if not cluster.machines:
            del self.clusters[m.zone]

    def take(self, id: int, request: Request, more: int = 1) -> None:
        """Something is placed on a machine (`more` of it), or leaves it (if negative)."""
        m = self.machines[id]
        cluster = self.clusters[m.zone]
        before = _used(m)
        m.take(request, more)
        delta = _sum(_used(m), before, -1)
        self.used = _sum(self.used, delta, 1)
        cluster.use(delta)
        cluster.count(request, more)
        self._note(id, cluster)

    def commit(self, id: int, request: Request) -> bool:
        """Places what an agent decided on a copy of its own; False if there is no room for it any more: a conflict."""
        m = self.machines.get(id)
        if m is None or m.draining or not m.room(request):
            return False
        self.take(id, request)
        return True

    def copy(self) -> Inventory:
        """Another with the same machines."""
        other = Inventory()
        for m in self.machines.values():
            other.put(m)
        return other

    def weights(self) -> Weights:
        """How much a free share of each resource counts: the scarcer it is in the zone, the more, in steps."""
        cpu, memory, gpu = (
            STEPS / (STEPS - min(floor(STEPS * used / total), STEPS - 1)) if total else 0.0
            for total, used in zip(self.sizes, self.used, strict=True)
        )
        return cpu, memory, gpu

    def _changed(self, m: MachineView, cluster: Cluster, sign: int) -> None:
        cluster.add(m, sign)
        self.sizes, self.used = _sum(self.sizes, _sizes(m), sign), _sum(self.used, _used(m), sign)
        self._note(m.id, cluster)

    def _note(self, id: int, cluster: Cluster) -> None:
        cluster.log.note(id)
        self.cluster_log.note(cluster.zone)
        self.log.note(id)
