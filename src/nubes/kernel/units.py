"""Units at the edge: users write "5m" and "4GiB"; inside, time is float seconds and sizes are bytes."""

from __future__ import annotations

import re

from nubes.kernel.errors import UsageError

_NUMBER = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Zµ]*)\s*$")
_SECONDS = {
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "w": 604800.0,
}
_BYTES = {
    "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip


def _split(text: str, units: dict[str, float] | dict[str, int], what: str, example: str) -> tuple[float, str]:
    match = _NUMBER.match(text)
    if match is None or match[2] not in units:
        raise UsageError(
            f"{text!r} is not a {what}.", f"Write it as a number and one of {', '.join(units)}: {example}."
        )
    return float(match[1]), match[2]


def seconds(value: str | int | float, name: str = "duration") -> float:
    """`"5m"` -> 300.0; a bare number is seconds, as everywhere in Python. Raises `UsageError`."""
    if isinstance(value, bool):
        raise UsageError(f"{name}={value!r} is not a duration.", f'Write {name}="5m".')
    if isinstance(value, (int, float)):
        if not value >= 0:
            raise UsageError(f"{name}={value!r} is negative.", "Durations are zero or more.")
        return float(value)
    number, unit = _split(value, _SECONDS, "duration", f'{name}="5m"')
    return number * _SECONDS[unit]


def size_bytes(value: str, name: str = "size") -> int:
    """`"4GiB"` -> 4294967296. A bare number is refused: bytes or MiB would be a guess. Raises `UsageError`."""
    if not isinstance(value, str):
        raise UsageError(f"{name}={value!r} has no unit.", f'Write {name}="512MiB" (or kB, MB, GB, KiB, GiB).')
    number, unit = _split(value, _BYTES, "size", f'{name}="512MiB"')
    return int(number * _BYTES[unit])


def show_seconds(value: float) -> str:
    """A duration as people read it: 64 us, 2.9 ms, 4.1 s, 12.5 min, 3.2 h."""
    for limit, scale, unit in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms"), (120.0, 1.0, "s"), (7200.0, 1 / 60, "min")):
        if abs(value) < limit:
            return f"{_digits(value * scale)} {unit}"
    return f"{_digits(value / 3600)} h"


def show_bytes(value: float) -> str:
    """A size as people read it, in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{_digits(value)} {unit}"
        value /= 1024
    return f"{_digits(value)} TiB"


def _digits(value: float) -> str:
    """Three significant digits, but never `1e+03`."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"
