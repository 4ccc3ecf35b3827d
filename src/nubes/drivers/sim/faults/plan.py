"""What goes wrong in one run. Each seed draws its own few kinds of faults and how often they come, and no others."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from nubes.functions.spec import Batching, FunctionSpec, Retries, Schedule

MIB = 1 << 20
POLICIES = {
    "keep-alive": ("fixed-window(keep=3s)", "no-unload", "lru", "cidre", "hybrid-histogram"),
    "queueing": ("fifo", "sjf", "edf"),
    "cold-start": ("fresh", "zygote", "sock", "seuss"),
    "placement": ("balanced", "spread", "best-fit"),
}
FAULTS = (
    "kill", "power cut", "crash in a disk operation", "clean restart", "full disk", "failed sync", "stall", "clock",
    "lost connection", "cut machine", "stopped agent", "lost machine", "machine to go", "rot",
    "second start",
)  # fmt: skip


@dataclass
class Plan:
    """One run: how long, who takes part, how likely things fail by themselves, and when what is done to it.

    Times are virtual seconds, rates are probabilities for each occasion.
    """

    length_s: float = 20.0
    clients: int = 3
    machines: int = 0  # besides the one that the control plane runs on
    think_s: float = 0.5  # between what a client does
    segment_bytes: int = 4096
    snapshot_records: int = 60
    keep_log_bytes: int = 1 << 30
    sync_s: float = 0.005
    delay_s: float = 0.002
    shared_keys: float = 0.15  # how likely a durable call has a key that others use, too
    down_s: float = 1.0
    short_writes: float = 0.0
    forgetful: bool = False
    start_s: float = 0.3
    run_s: float = 0.3
    start_fails: float = 0.0
    start_hangs: float = 0.0
    call_fails: float = 0.0
    call_hangs: float = 0.0
    call_kills: float = 0.0
    parent_dies: float = 0.0
    far_files: float = 0.0  # how likely a function's files are not on a machine
    far_data: float = 0.0  # how likely data goes another way than the messages
    far_data_lost: float = 0.0
    policies: dict[str, str] = field(default_factory=dict)
    faults: list[tuple[float, str]] = field(default_factory=list)


def draw(r: random.Random) -> Plan:
    """A plan: most of what could go wrong does not in this run, so that what does is not covered up by the rest."""

    def rate(most: float) -> float:
        return r.random() * most if r.random() < 0.4 else 0.0

    length_s = r.choice([3.0, 8.0, 20.0])
    plan = Plan(
        length_s=length_s,
        clients=r.choice([1, 2, 3]),
        machines=r.choice([0, 0, 1, 2, 3]),
        think_s=length_s / r.choice([8, 15, 30]),
        segment_bytes=r.choice([600, 2000, 8000]),
        snapshot_records=r.choice([12, 40, 120, 10_000]),
        keep_log_bytes=r.choice([0, 1500, 1 << 30]),
        sync_s=r.choice([0.0, 0.001, 0.01, 0.3]),
        delay_s=r.choice([0.0, 0.001, 0.02, 0.3]),
        shared_keys=r.choice([0.0, 0.1, 0.7]),
        down_s=r.choice([0.0, 0.5, 3.0]),
        short_writes=rate(0.5),
        forgetful=r.random() < 0.3,
        start_s=r.choice([0.01, 0.3, 2.0]),
        run_s=r.choice([0.01, 0.3, 2.0]),
        start_fails=rate(0.3),
        start_hangs=rate(0.2),
        call_fails=rate(0.5),
        call_hangs=rate(0.2),
        call_kills=rate(0.3),
        parent_dies=rate(0.4),
        far_files=rate(1.0),
        far_data=rate(0.5),
        far_data_lost=rate(0.3),
        policies={seam: r.choice(names) for seam, names in POLICIES.items() if r.random() < 0.5},
    )
    for kind in FAULTS:
        if r.random() < 0.3:
            times = r.choice([1, 1, 2, 4])
            plan.faults += [(r.random() * length_s, kind) for _ in range(times)]
    plan.faults.sort()
    return plan


def functions(r: random.Random) -> tuple[FunctionSpec, ...]:
    """An app of up to four functions, of all kinds."""
    return tuple(function(r, f"a/f{number}") for number in range(r.choice([1, 2, 4])))


def function(r: random.Random, name: str, cpu: float | None = None, memory_bytes: int = 0) -> FunctionSpec:
    batching = Batching(3, r.choice([0.0, 0.2])) if r.random() < 0.15 else None
    single = batching is None and r.random() < 0.1
    return FunctionSpec(
        name=name,
        cpu=r.choice([0.125, 0.5, 1.0]) if cpu is None else cpu,
        memory_bytes=memory_bytes or r.choice([64, 128, 400]) * MIB,
        timeout_s=r.choice([1.5, 5.0, 60.0]),
        startup_timeout_s=r.choice([4.0, 60.0]),
        retries=Retries(r.choice([0, 0, 1, 3]), 2.0, r.choice([0.0, 0.5]), 4.0),
        concurrency=1 if batching or single else r.choice([1, 1, 2, 4]),
        min_instances=r.choice([0, 0, 0, 1]),
        max_instances=r.choice([0, 0, 1, 3]),
        buffer_instances=r.choice([0, 0, 0, 1]),
        max_queued=r.choice([2, 100_000, 100_000]),
        batching=batching,
        single_use=single,
        schedule=Schedule(period_s=4.0) if r.random() < 0.08 else None,
    )
