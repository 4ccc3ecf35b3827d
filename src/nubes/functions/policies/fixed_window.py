"""One keep-alive window for every function: what most platforms do."""

from __future__ import annotations

from nubes.functions.seams import FunctionView, KeepAlive, Window
from nubes.kernel.policy import policy
from nubes.kernel.units import seconds


@policy("fixed-window")
class FixedWindow(KeepAlive):
    """Stay loaded for `keep` after every execution; start one instance for each call that waits."""

    def __init__(self, keep: str | float = "10m") -> None:
        self.kept = Window(0.0, seconds(keep, "keep"))

    def window(self, f: FunctionView, now: float) -> Window:
        return self.kept


@policy("no-unload")
class NoUnload(KeepAlive):
    """Stay loaded for good: fewest cold starts, highest price. Short memory evicts as `lru` does."""
