"""Tiny workloads, written out call by call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nubes.drivers.sim import simulate
from nubes.functions.controller import Functions
from nubes.functions.spec import FunctionSpec
from nubes.workloads import Outcome, Workload

GIB = 1 << 30


def workload(
    calls: Sequence[tuple[float, float]],
    start_s: Sequence[float] = (2.0,),
    seconds: float = 20.0,
    spec: dict[str, Any] | None = None,
    **columns: Any,
) -> Workload:
    """One function of 1 GiB called at (arrival, execution time)."""
    made = FunctionSpec(name="app/f", memory_bytes=GIB, **(spec or {}))
    arrival_s, exec_s = np.array(calls, float).reshape(-1, 2).T.copy()
    function = np.zeros(len(calls), np.int32)
    return Workload("tiny", "by hand", (made,), arrival_s, function, exec_s, (np.array(start_s),), seconds, **columns)


def run(made: Workload, keep_alive: str = "fixed-window(keep=5s)", **kwargs: Any) -> Outcome:
    record = kwargs.pop("record", False)
    return simulate(made, Functions(keep_alive, **{"cold_start": "fresh", **kwargs}), record=record)


def random_workload(seed: int, functions: int = 4, calls: int = 60, seconds: float = 120.0) -> Workload:
    """Calls of all lengths, close enough together to wait for each other."""
    draw = np.random.default_rng(seed)
    specs = tuple(
        FunctionSpec(name=f"app{i}/f", memory_bytes=int(draw.integers(1, 5)) * GIB // 4) for i in range(functions)
    )
    return Workload(
        f"random {seed}",
        "drawn",
        specs,
        np.sort(draw.random(calls)) * seconds / 2,
        draw.integers(functions, size=calls).astype(np.int32),
        draw.exponential(1.5, calls),
        tuple(draw.exponential(2.0, 3) for _ in range(functions)),
        seconds,
    )
