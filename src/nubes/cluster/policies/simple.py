"""Placement by one idea each, what anything better is compared with, and the default: the good ones in order.

`balanced`: replicas of one service apart, then where the inputs are, then the least loaded of
those that differ in more than an eighth of their CPU, then where the code is loaded already.
"""

from __future__ import annotations

from math import floor, inf

from nubes.cluster.seams import MachineView, Placement, Preference, Request
from nubes.kernel.policy import policy

NEAR_BYTES = 1 << 20  # inputs below this are fetched sooner than a worse machine is suffered
STEPS = 8  # buckets of a machine's load


def _load(request: Request, m: MachineView) -> float:
    """The share of the scarcer resource that is in use afterwards, in eighths."""
    cpu = (m.cpu_used + request.cpu) / m.cpu if 0 < m.cpu < inf else 0.0
    memory = (m.memory_used + request.memory_bytes) / m.memory_bytes if 0 < m.memory_bytes < inf else 0.0
    return floor(max(cpu, memory) * STEPS)


def _left(request: Request, m: MachineView) -> float:
    """The share of CPU and memory that stays free, summed."""
    cpu = (m.cpu - m.cpu_used - request.cpu) / m.cpu if 0 < m.cpu < inf else 0.0
    memory = (
        (m.memory_bytes - m.memory_used - request.memory_bytes) / m.memory_bytes if 0 < m.memory_bytes < inf else 0.0
    )
    return cpu + memory


def _bytes_away(request: Request, m: MachineView) -> float:
    """Bytes of its inputs that would have to come, in steps of a mebibyte."""
    return sum(size for where, size in request.near if where != m.id) // NEAR_BYTES


least_loaded = Preference("least loaded", ("cpu", "memory_bytes"), _load)
fullest = Preference("fullest", ("cpu", "memory_bytes"), _left)
emptiest = Preference("emptiest", ("cpu", "memory_bytes"), lambda r, m: -_left(r, m))
inputs_there = Preference("inputs there", ("near",), _bytes_away)
code_there = Preference("code there", ("kind",), lambda r, m: 0.0 if m.holds.get(r.kind) else 1.0)
apart = Preference("replicas apart", ("group",), lambda r, m: m.groups.get(r.group, 0) if r.group else 0.0)


@policy("balanced")
class Balanced(Placement):
    """The default: apart for availability, near the data, then even, then where the code is."""

    preferences = (apart, inputs_there, least_loaded, code_there)


@policy("first-fit")
class FirstFit(Placement):
    """The first machine with room."""


@policy("best-fit")
class BestFit(Placement):
    """The machine that is left the fullest."""

    preferences = (fullest,)


@policy("worst-fit")
class WorstFit(Placement):
    """The machine that is left the emptiest."""

    preferences = (emptiest,)


@policy("locality")
class Locality(Placement):
    """Where the inputs are, then where the code is, however loaded."""

    preferences = (inputs_there, code_there, least_loaded)


@policy("spread")
class Spread(Placement):
    """Everything of one kind as far apart as can be."""

    preferences = (Preference("fewest of its kind", ("kind",), lambda r, m: m.holds.get(r.kind, 0)), least_loaded)
