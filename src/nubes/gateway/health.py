"""Health: alive is not ready. Ready means that the control plane makes progress, not just that it answers."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

from nubes.functions import events as e

if TYPE_CHECKING:
    from nubes.drivers.local.control_plane import ControlPlane

STUCK_S = 10.0


class Health:
    """Says why not, or nothing."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.draining = False
        self._moved_s = plane.clock()
        kinds: tuple[type[Any], ...] = (e.Dispatch, e.Resolve, e.InstanceReady, e.NodeReady)
        for kind in kinds:
            plane.observe(kind, self._moved)

    def _moved(self, _: object) -> None:
        self._moved_s = self.plane.now

    def trouble(self) -> str:
        """Why work should go elsewhere; empty if it need not."""
        plane, journal = self.plane, self.plane.journal
        if self.draining:
            return "It is shutting down."
        if journal.full:
            return journal.full
        if journal.flushing_since_s and plane.loop.time() - journal.flushing_since_s > STUCK_S:
            return f"The disk has not taken the log for {plane.loop.time() - journal.flushing_since_s:.0f} s."
        now = plane.clock()
        if now - self._moved_s < STUCK_S:
            return ""
        for f in plane.controller.functions.values():
            waits = (
                f.queued
                and not (f.busy or f.starting)
                and not (f.blocked and plane.controller.cpu_used)
                and f.held_s == inf
            )
            if waits:
                return (
                    f"{f.queued} calls of {f.spec.name!r} wait, and nothing has moved for {now - self._moved_s:.0f} s."
                )
        return ""
