"""Health: alive is not ready. Ready means that every engine makes progress when there is work."""

from __future__ import annotations

from collections.abc import Mapping

from nubes.llm.live import Engine


def trouble(engines: Mapping[str, Engine], stall_s: float) -> str:
    """Why work should go elsewhere; empty if it need not."""
    for name, engine in engines.items():
        try:
            stats = engine.stats()
        except Exception as error:  # an engine that cannot even be asked
            return f"The engine of {name} does not answer: {type(error).__name__}."
        if stats.stalled_s > stall_s:
            return (
                f"The engine of {name} has not finished a step for {stats.stalled_s:.1f} s, with {stats.running} "
                f"requests running and {stats.waiting} waiting."
            )
    return ""
