"""What an instance is given when it starts."""

from __future__ import annotations

import msgspec


class Setting(msgspec.Struct, array_like=True, frozen=True):
    """What every instance of one function finds around it."""

    shared: str = ""  # the folder for results in shared memory
    objects: str = ""  # the folder, or URL, for results that outlive a crash
    output: str = ""  # the file for what it writes to its descriptors 1 and 2
    env: dict[str, str] = {}
    volumes: dict[str, str] = {}  # where it appears -> the folder that it is


class Birth(msgspec.Struct, array_like=True, frozen=True):
    """What one start is given alone."""

    started_s: float = 0.0  # when it was asked for, by the machine's monotonic clock
    limits: list[tuple[str, str]] = []  # see `nubes.drivers.local.limits.Limits.plan`
    variant: bytes = b""  # the parameters of a class, as a payload
