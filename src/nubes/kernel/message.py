"""Events and commands: frozen records, compact on disk and on the wire."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, Union

import msgspec


class Event(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Something that happened. `durable` events are on disk before anybody is told of them."""

    @property
    def durable(self) -> bool:
        return True


class Command(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Something a driver is to do."""


class Controller(Protocol):
    """A sans-I/O state machine: no clock, socket, thread or global random in it.

    Its state is the fold of the events it was given; the same events give the same commands.
    """

    def handle(self, event: Any, now: float) -> list[Any]:
        """Take one event at time `now` (float seconds, never decreasing) and return what is to be done."""
        ...


class Codec:
    """(time, event) to bytes and back, for one closed set of event types; new fields go last and have defaults."""

    def __init__(self, events: Iterable[type[Event]]) -> None:
        self._encode = msgspec.msgpack.Encoder().encode
        record: Any = tuple[float, Union[tuple(events)]]  # type: ignore[misc]  # noqa: UP007
        self._decode: Callable[[bytes], tuple[float, Any]] = msgspec.msgpack.Decoder(record).decode

    def encode(self, now: float, event: Event) -> bytes:
        return self._encode((now, event))

    def decode(self, record: bytes) -> tuple[float, Any]:
        return self._decode(record)
