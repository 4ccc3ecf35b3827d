"""What became of simulated requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nubes.workloads.llm import LLMWorkload


@dataclass(frozen=True, eq=False)
class Served:
    """What became of n requests, in columns; times are seconds since the beginning, nan: never.

    `arrived_s` is the workload's own, but where a request waited for the answer before it in its session.
    `gaps_s` and `gap_counts`: times between tokens of one answer, and how many there were of each.
    """

    workload: LLMWorkload
    arrived_s: NDArray[np.float64]
    begun_s: NDArray[np.float64]  # when the first of its prompt was computed; inf: never
    first_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    instance: NDArray[np.int32]
    cached: NDArray[np.int64]  # prompt tokens that were not computed
    gaps_s: NDArray[np.float64]
    gap_counts: NDArray[np.int64]
    steps: int
    busy_s: float  # of all instances together
    preemptions: int
    seconds: float  # simulated
    took_s: float  # for real

    @property
    def ttft_s(self) -> NDArray[np.float64]:
        return np.asarray(self.first_s - self.arrived_s)

    @property
    def tpot_s(self) -> NDArray[np.float64]:
        """Mean time between tokens of each answer of two tokens or more."""
        several = self.workload.output > 1
        return np.asarray((self.end_s - self.first_s)[several] / (self.workload.output[several] - 1))

    @property
    def latency_s(self) -> NDArray[np.float64]:
        return np.asarray(self.end_s - self.arrived_s)
