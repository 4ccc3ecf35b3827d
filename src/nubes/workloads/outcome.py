"""What became of a workload: when each call ran, and how long each instance was loaded. Simulated or measured live."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ANSWERED, FAILED, UNANSWERED = 0, 1, 2  # a call's end: with a result, with an error, not before the run ended


@dataclass(eq=False)
class Lives:
    """Processes, in columns: what they were, when they were started, ready and stopped (`inf`: still there)."""

    function: NDArray[np.int32]  # [m] index into the workload's functions; -1: a parent in the process tree
    start_s: NDArray[np.float64]  # [m]
    ready_s: NDArray[np.float64]  # [m]
    stop_s: NDArray[np.float64]  # [m]
    memory_bytes: NDArray[np.float64]  # [m]


@dataclass(eq=False)
class Outcome:
    """One value for each call of the workload; times are `nan` where there was none."""

    started_s: NDArray[np.float64]  # [n] when the call was given to an instance
    ended_s: NDArray[np.float64]  # [n] when it had its answer
    how: NDArray[np.int8]  # [n] WARM, DELAYED or COLD
    instance: NDArray[np.int32]  # [n] row of `lives`; -1: none
    end: NDArray[np.int8]  # [n] ANSWERED, FAILED or UNANSWERED
    lives: Lives
    events: int = 0  # the controller handled
    wall_s: float = 0.0  # it took
    log: list[tuple[float, Any]] = field(default_factory=list)  # the events, if they were recorded
