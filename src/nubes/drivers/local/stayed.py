"""Outputs that wait for the next step of their call where they were made, and are fetched if it runs elsewhere.

A payload that stayed is `L`, then the machine and the payload there. Only what is large stays: it lies in a segment.
"""

from __future__ import annotations

import os

import msgspec

from nubes.drivers.local import payload
from nubes.drivers.local.objects import is_url

MARK = b"L"
LEAST_BYTES = 1 << 20  # below this, carrying it along is as good

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, int, bytes]).decode


def size_of(data: bytes) -> int:
    """Bytes of a payload that lie in memory of this machine; 0 if it is small, or lies elsewhere."""
    path = payload.segment_of(data)
    if not path or is_url(path):
        return 0
    try:
        size = os.path.getsize(path)
    except FileNotFoundError:
        return 0
    return size if size >= LEAST_BYTES else 0


def at(machine: int, size: int, data: bytes) -> bytes:
    """The payload that stands for one of `size` bytes on a machine."""
    return MARK + _encode((machine, size, data))


def where(data: bytes) -> tuple[int, int, bytes] | None:
    """(machine, bytes, the payload there) if it stayed."""
    return _decode(memoryview(data)[1:]) if data[:1] == MARK else None


def inside(data: bytes) -> bytes:
    """The payload as it is on the machine where it lies."""
    found = where(data)
    return data if found is None else found[2]


def is_on(data: bytes, machine: int) -> bool:
    """Whether it stayed on that machine."""
    found = where(data)
    return found is not None and found[0] == machine


def near(data: bytes) -> tuple[tuple[int, int], ...]:
    """Where a payload lies, for placement: on the machine it stayed on, or here, on machine 0."""
    found = where(data)
    if found is not None:
        return (found[:2],)
    size = size_of(data)
    return ((0, size),) if size else ()


def drop(data: bytes) -> None:
    """Nobody reads an output of this machine any more, unless it is kept for good."""
    path = payload.segment_of(data)
    if path and not payload.is_object(path) and not is_url(path):
        payload.discard(path)
