"""Least recently used: the plain cache that smarter evictions are measured against."""

from __future__ import annotations

from nubes.functions.seams import InstanceView, KeepAlive
from nubes.kernel.policy import policy


@policy("lru")
class Lru(KeepAlive):
    """Stay loaded until memory is short, then give up the instance that was used longest ago."""

    def priority(self, instance: InstanceView, now: float) -> float:
        return instance.last_used_s
