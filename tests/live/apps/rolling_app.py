"""What says which of its instances may go at once."""

from __future__ import annotations

import os
from typing import Any

import nubes

app = nubes.App("rolling")


@app.function(min_instances=2, disruption="quorum(up=2)")
def where() -> int:
    return os.getpid()


@app.cls(min_instances=2, disruption="app")
class Store:
    @nubes.method()
    def may_go(self, pending: list[Any], running: list[Any]) -> list[int]:
        """The oldest, one at a time."""
        print("asked:", sorted(one.kind for one in pending))
        return [] if running else [min(one.id for one in pending)]
