"""What users may expect of an LLM endpoint: a service-level objective on each request's times."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import msgspec

from nubes.kernel.errors import UsageError
from nubes.kernel.units import seconds, show_seconds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nubes.drivers.sim.llm import Served


class Slo(msgspec.Struct, frozen=True):
    """The longest a request may take: to its first token, between tokens on average, to its last."""

    ttft_s: float = inf
    tpot_s: float = inf
    latency_s: float = inf

    def __str__(self) -> str:
        parts = [(name, limit) for name, limit in zip(NAMES, msgspec.structs.astuple(self), strict=True) if limit < inf]
        return ", ".join(f"{name} {show_seconds(limit)}" for name, limit in parts)

    def met(self, served: Served) -> NDArray[np.bool_]:
        """[n]: which requests were served in time. A single token has no time between tokens."""
        import numpy as np

        output = served.workload.output
        tpot_s = (served.end_s - served.first_s) / np.maximum(output - 1, 1)
        in_time = (served.ttft_s <= self.ttft_s) & (tpot_s <= self.tpot_s) & (served.latency_s <= self.latency_s)
        return np.asarray(in_time & ~np.isnan(served.end_s))


NAMES = ("ttft", "tpot", "latency")


def slo(text: str) -> Slo:
    """`"ttft=500ms,tpot=50ms"`. Raises `UsageError`."""
    limits: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in NAMES or name in limits:
            raise UsageError(f"{part!r} is no objective.", f"Write ttft=500ms,tpot=50ms; there are {', '.join(NAMES)}.")
        limits[name] = seconds(value, name)
    if not limits:
        raise UsageError("The objective is empty.", "Write ttft=500ms,tpot=50ms.")
    return Slo(*(limits.get(name, inf) for name in NAMES))
