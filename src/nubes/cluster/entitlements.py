"""Entitlements: quotas that behave like clusters of one's own, over machines that all share (Twine).

A machine is bound to one entitlement at a time, or to none. The allocator places on what is bound, and binds another
machine when that is full; the rebalancer empties machines that are little used and gives them back. Bindings are
the zones of the inventory, so that every allocation looks only at the entitlement's own machines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random

import msgspec

from nubes.cluster.allocation import Allocator, Inventory, Rulebook
from nubes.cluster.seams import MachineView, Request
from nubes.kernel.errors import UsageError

FREE = ""  # the zone of machines that are bound to no entitlement


class Entitlement(msgspec.Struct, frozen=True):
    """A named quota. What is 0 is not to be had; `profile` names the settings its machines are given first."""

    name: str
    cpu: float
    memory_bytes: int
    gpu: float = 0.0
    profile: str = ""


class Container(msgspec.Struct, frozen=True):
    id: int
    entitlement: str
    machine: int
    request: Request


class Move(msgspec.Struct, frozen=True):
    """A container that should run elsewhere."""

    container: int
    source: int
    target: int


class Region:
    """All machines, who they are bound to, and what runs on them. Pure state: it starts and stops nothing itself."""

    def __init__(self, entitlements: Iterable[Entitlement], rulebook: Rulebook, draw: Random) -> None:
        self.entitlements = {one.name: one for one in entitlements}
        if FREE in self.entitlements:
            raise UsageError("An entitlement has no name.", "Name it.")
        self.used = {name: MachineView(-1, one.cpu, one.memory_bytes, one.gpu) for name, one in
                     self.entitlements.items()}  # fmt: skip
        self.inventory = Inventory()
        self.allocator = Allocator(self.inventory, rulebook, draw)
        self.containers: dict[int, Container] = {}
        self.on: dict[int, set[int]] = {}  # machine -> containers
        self.bindings = 0  # made so far: each costs a switch of profile

    def join(self, machine: MachineView) -> None:
        """A machine comes, free."""
        copy = machine.freeze()
        copy.zone = FREE
        self.inventory.put(copy)
        self.on[machine.id] = set()

    def place(self, id: int, entitlement: str, request: Request) -> int | None:
        """The machine that container `id` is put on; None: over quota, or there is no room anywhere."""
        quota = self.used[entitlement]
        if not quota.room(request):
            return None
        machine = next(self.allocator.within(entitlement, request), None)
        if machine is None:
            machine = next(self.allocator.within(FREE, request), None)
            if machine is None:
                return None
            self.bind(machine, entitlement)
        self._put(Container(id, entitlement, machine, request))
        return machine

    def leave(self, id: int) -> None:
        """A container is over. A machine that nothing is left on becomes free."""
        gone = self._take(id)
        if not self.on[gone.machine]:
            self.bind(gone.machine, FREE)

    def bind(self, machine: int, entitlement: str) -> None:
        """An empty machine goes over to an entitlement, or becomes free."""
        copy = self.inventory.machines[machine].freeze()
        if copy.holds:
            raise UsageError(f"Machine {machine} is in use.", "Move what runs there first.")
        self.bindings += entitlement != FREE
        copy.zone = entitlement
        self.inventory.put(copy)

    def lose(self, machine: int) -> list[Container]:
        """A machine is gone, planned or not; returns what ran on it, to be placed anew."""
        lost = [self._take(id) for id in sorted(self.on[machine])]
        self.inventory.drop(machine)
        del self.on[machine]
        return lost

    def rebalance(self, limit: int) -> list[Move]:
        """At most `limit` moves that empty machines, the least used first; the state is as if they had been made.

        A machine is emptied whole or not at all.
        """
        moves: list[Move] = []
        for name in self.entitlements:
            cluster = self.inventory.clusters.get(name)
            if cluster is None:
                continue
            for m in sorted(cluster.machines.values(), key=lambda m: (_load(m), m.id)):
                if len(self.on[m.id]) <= limit - len(moves):
                    moves += self._empty(name, m.id)
        return moves

    def _empty(self, entitlement: str, machine: int) -> list[Move]:
        moved: list[Move] = []
        for id in sorted(self.on[machine], key=lambda id: (-self.containers[id].request.gpu, id)):
            container = self._take(id)
            choices: Iterator[int] = self.allocator.within(entitlement, container.request)
            # To where others run already: an empty machine would be won by emptying one, and lost again.
            target = next((at for at in choices if at != machine and self.on[at]), None)
            if target is None:
                self._put(container)
                for move in reversed(moved):
                    back = self._take(move.container)
                    self._put(msgspec.structs.replace(back, machine=machine))
                return []
            self._put(msgspec.structs.replace(container, machine=target))
            moved.append(Move(id, machine, target))
        self.bind(machine, FREE)
        return moved

    def _put(self, container: Container) -> None:
        self.inventory.take(container.machine, container.request)
        self.used[container.entitlement].take(container.request, 1)
        self.containers[container.id] = container
        self.on[container.machine].add(container.id)

    def _take(self, id: int) -> Container:
        container = self.containers.pop(id)
        self.on[container.machine].remove(id)
        self.inventory.take(container.machine, container.request, -1)
        self.used[container.entitlement].take(container.request, -1)
        return container


def _load(m: MachineView) -> float:
    """The share in use of what is scarcest on a machine."""
    pairs = ((m.cpu_used, m.cpu), (m.memory_used, m.memory_bytes), (m.gpu_used, m.gpu))
    return max((used / size for used, size in pairs if size), default=0.0)
