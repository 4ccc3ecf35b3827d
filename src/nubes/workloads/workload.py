"""A workload: which functions there are, when they are called, how long each call runs, how long starts take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from nubes.functions.models import TreeTimes
from nubes.functions.spec import FunctionSpec
from nubes.kernel.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Workload:
    """n calls of functions, in columns. Times are seconds from the workload's start.

    `function` indexes `specs`; `variants` (parallel to `specs`, or empty) tells parameterisations of one class apart.
    `start_s` holds, for each function, samples of a start that shares nothing; they are handed out in turn.
    """

    name: str
    source: str  # where it comes from and what was assumed, in a sentence or two
    specs: tuple[FunctionSpec, ...]
    arrival_s: NDArray[np.float64]  # [n], ascending
    function: NDArray[np.int32]  # [n]
    exec_s: NDArray[np.float64]  # [n]
    start_s: tuple[NDArray[np.float64], ...]
    seconds: float  # its length: what memory-time is counted over
    variants: tuple[str, ...] = ()
    overhead_s: NDArray[np.float64] | None = None  # [n] an instance's time with a call beyond `exec_s`
    fails: NDArray[np.int16] | None = None  # [n] attempts that raise before the one that does not
    tree: TreeTimes | None = None  # what starting from parents takes, where that was measured

    def __post_init__(self) -> None:
        n = len(self.arrival_s)
        if len(self.function) != n or len(self.exec_s) != n:
            raise UsageError(
                f"The columns of workload {self.name!r} differ in length.", "Give one value for each call."
            )
        if len(self.start_s) != len(self.specs) or not all(len(samples) for samples in self.start_s):
            raise UsageError(
                f"A function of workload {self.name!r} has no start time.", "Give each at least one sample."
            )
        if n and (self.arrival_s[1:] < self.arrival_s[:-1]).any():
            raise UsageError(f"The arrivals of workload {self.name!r} are out of order.", "Sort the calls by arrival.")

    @property
    def calls(self) -> int:
        return len(self.arrival_s)

    @property
    def pools(self) -> list[str]:
        """The name of each function's pool of instances: its own, and its parameters if it has any."""
        variants = self.variants or ("",) * len(self.specs)
        return [spec.name + variant for spec, variant in zip(self.specs, variants, strict=True)]

    def idempotent(self) -> Workload:
        """The same workload of functions that may run twice for one call."""
        return replace(self, specs=tuple(msgspec.structs.replace(spec, idempotent=True) for spec in self.specs))

    def until(self, seconds: float) -> Workload:
        """The same workload, cut off after `seconds`."""
        n = int(self.arrival_s.searchsorted(seconds, side="left"))

        def cut(column: Any) -> Any:
            return None if column is None else column[:n]

        return replace(
            self,
            arrival_s=cut(self.arrival_s),
            function=cut(self.function),
            exec_s=cut(self.exec_s),
            overhead_s=cut(self.overhead_s),
            fails=cut(self.fails),
            seconds=min(seconds, self.seconds),
        )
