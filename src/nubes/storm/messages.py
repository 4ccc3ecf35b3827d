"""What a storm's workers are asked, and what they answer: lines of JSON."""

from __future__ import annotations

import msgspec

from nubes.storm.spec import Outcome, Schedule


class Days(msgspec.Struct, frozen=True, tag="days"):
    """Play `count` days from number `first` on."""

    first: int
    count: int


class Shrink(msgspec.Struct, frozen=True, tag="shrink"):
    """Find the smallest schedule that breaks what this one does."""

    schedule: Schedule


class Replay(msgspec.Struct, frozen=True, tag="replay"):
    """Play this day, and tell its story."""

    schedule: Schedule


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The app is loaded, and has these."""

    app: str
    functions: tuple[str, ...]
    scenarios: tuple[str, ...]
    invariants: tuple[str, ...]


class Played(msgspec.Struct, frozen=True, tag="played"):
    """What became of some days: those that failed, as schedules of what happened on them."""

    days: int
    faults: int
    operations: int
    failed: tuple[Schedule, ...]


class Shrunk(msgspec.Struct, frozen=True, tag="shrunk"):
    schedule: Schedule
    days: int  # that it took


class Replayed(msgspec.Struct, frozen=True, tag="replayed"):
    outcome: Outcome


class Died(msgspec.Struct, frozen=True, tag="died"):
    """A day ended its process, or never ended."""

    day: int
    how: str


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The app cannot be stormed: an error's class, its message and hint, or what its import printed."""

    kind: str
    message: str
    hint: str


Request = Days | Shrink | Replay
Answer = Ready | Played | Shrunk | Replayed | Died | Refused
