"""Shortest job first."""

from __future__ import annotations

from nubes.functions.seams import CallView, FunctionView, Queueing
from nubes.kernel.policy import policy
from nubes.kernel.units import seconds


@policy("sjf")
class ShortestJob(Queueing):
    """The function whose calls have run shortest on average goes first; one that never ran before all others.

    Longer ones that fit where the first in line does not may pass it, until its call is older than `patience`.
    """

    def __init__(self, patience: str | float = "10s") -> None:
        self.patience_s = seconds(patience, "patience")

    def order(self, f: FunctionView, call: CallView) -> tuple[float, ...]:
        return (f.exec_s, call.arrived_s)
