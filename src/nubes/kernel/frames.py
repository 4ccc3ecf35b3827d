"""Records and states as bytes on disk, such that damage is seen. A record is `length, crc32, body`."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

SEGMENT = b"nubeslog1\n"  # what a segment begins with
MAX_RECORD_BYTES = 1 << 30
_SNAPSHOT = b"nubessnap1\n"
_FRAME = struct.Struct("<II")
_NUMBER = struct.Struct("<I")


def frame(body: bytes) -> bytes:
    """A record as it stands in a segment. The crc also covers the length."""
    return _FRAME.pack(len(body), _crc(body)) + body


def frames(raw: bytes) -> Iterator[tuple[bytes, int]]:
    """(body, offset behind it) for each whole record of a segment, until the first that is not."""
    position, size = len(SEGMENT), len(raw)
    if not raw.startswith(SEGMENT):
        return
    while position + _FRAME.size <= size:
        length, crc = _FRAME.unpack_from(raw, position)
        start = position + _FRAME.size
        position = start + length
        if position > size:
            return
        body = raw[start:position]
        if _crc(body) != crc:
            return
        yield body, position


def is_torn(raw: bytes, good: int) -> bool:
    """Whether what follows offset `good` looks like a write that a crash cut short, rather than bytes that changed."""
    if not good:
        return SEGMENT.startswith(raw)
    if len(raw) < good + _FRAME.size:
        return True
    length: int = _FRAME.unpack_from(raw, good)[0]
    return len(raw) < good + _FRAME.size + length and length <= MAX_RECORD_BYTES


def snapshot(state: bytes) -> bytes:
    """A state as it stands in a file of its own."""
    return _SNAPSHOT + _NUMBER.pack(zlib.crc32(state)) + state


def state_in(raw: bytes) -> bytes | None:
    """The state in a snapshot; None if it is damaged."""
    state = raw[len(_SNAPSHOT) + _NUMBER.size :]
    return state if raw == snapshot(state) else None


def _crc(body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(_NUMBER.pack(len(body))))
