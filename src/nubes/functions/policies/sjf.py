"""Shortest job first."""

from __future__ import annotations

from nubes.functions.seams import CallView, FunctionView, Queueing
from nubes.kernel.policy import policy


@policy("sjf")
class ShortestJob(Queueing):
    """The function whose calls have run shortest on average goes first; one that never ran before all others."""

    def order(self, f: FunctionView, call: CallView) -> tuple[float, ...]:
        return (f.exec_s, call.arrived_s)
