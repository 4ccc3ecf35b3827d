"""Earliest deadline first."""

from __future__ import annotations

from nubes.functions.seams import CallView, FunctionView, Queueing
from nubes.functions.spec import FunctionSpec
from nubes.kernel.policy import policy
from nubes.kernel.units import seconds

RESERVED_S, OPPORTUNISTIC_S = 5.0, 86_400.0  # deadlines of functions that declare none


def deadline_s(spec: FunctionSpec, call: CallView) -> float:
    """When `call` is to have started."""
    if spec.deadline_s:
        return call.arrived_s + spec.deadline_s
    return call.arrived_s + (OPPORTUNISTIC_S if spec.quota == "opportunistic" else RESERVED_S)


@policy("edf")
class EarliestDeadline(Queueing):
    """The call whose deadline is nearest goes first: optimal for one server if all deadlines can be met at all.

    Later ones that fit where the first in line does not may pass it, until its call is older than `patience`.
    """

    ordered = True

    def __init__(self, patience: str | float = "10s") -> None:
        self.patience_s = seconds(patience, "patience")

    def order(self, f: FunctionView, call: CallView) -> tuple[float, ...]:
        return (deadline_s(f.spec, call),)
