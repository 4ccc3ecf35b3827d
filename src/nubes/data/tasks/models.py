"""What the simulator needs to know of a graph's tasks and of the machines they run on."""

from __future__ import annotations

import msgspec

from nubes.data.tasks.spec import Task


class Work(msgspec.Struct, frozen=True):
    """A task, when and on which node it is submitted, how long it takes and how large its object is."""

    task: Task
    at_s: float
    node: int
    run_s: float
    size_bytes: int = 0


class Hardware(msgspec.Struct, frozen=True):
    """Nodes with a full-duplex link each. A scheduler takes one decision after the other."""

    nodes: int
    cpus: int = 1
    link_bytes_s: float = 125e6  # 1 Gbit/s, each way
    latency_s: float = 1e-4
    local_decision_s: float = 20e-6
    global_decision_s: float = 20e-6
    heartbeat_s: float = 0.01
