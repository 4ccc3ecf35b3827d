"""Where code runs: with the user, or in one of the cloud's own processes."""

from __future__ import annotations

_local = True


def is_local() -> bool:
    """False while a function, or the module it stands in, is loaded and run in the cloud; True elsewhere."""
    return _local


def enter() -> None:
    """From here on this process is one of the cloud's."""
    global _local
    _local = False
