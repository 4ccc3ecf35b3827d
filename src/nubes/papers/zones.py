"""Made-up zones: machines in clusters, types of virtual machines, and a zone in use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from nubes.cluster.allocation import Inventory
from nubes.cluster.seams import MachineView, Request

CORES, MEMORY = 64.0, 384 << 30
FILLED = 0.7  # of what is scarcest in a zone in use


def types(draw: Random) -> list[Request]:
    """50 VM types: a whole machine, and sizes from 1/64 of one on, evenly on a log scale."""
    made = [Request("whole", CORES, MEMORY)]
    for i in range(49):
        part = 2.0 ** draw.uniform(-6.0, -0.5)
        memory = min(1.0, 0.7 * part * 2.0 ** draw.uniform(-1.0, 1.0))
        made.append(Request(f"type-{i}", round(CORES * part, 2), int(MEMORY * memory)))
    return made


def shares(kinds: Sequence[Request], draw: Random) -> list[float]:
    """How often each type is asked for: small ones more often."""
    return [(0.5 + draw.random()) / kind.cpu**0.5 for kind in kinds]


def zone(size: int, clusters: int) -> Inventory:
    inventory = Inventory()
    for id in range(size):
        inventory.put(MachineView(id, CORES, MEMORY, zone=f"cluster-{id * clusters // size:02}"))
    return inventory


def fill(inventory: Inventory, request: Callable[[], Request], draw: Random) -> list[tuple[int, Request]]:
    """Places requests at random until `FILLED` of what is scarcest is taken; returns what is where."""
    ids = sorted(inventory.machines)
    there = []
    while max(used / size for used, size in zip(inventory.used, inventory.sizes, strict=True) if size) < FILLED:
        id, one = draw.choice(ids), request()
        if inventory.commit(id, one):
            there.append((id, one))
    return there
