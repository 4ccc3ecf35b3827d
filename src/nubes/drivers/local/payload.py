"""Arguments and results as bytes. Large buffers (NumPy, Arrow, bytes) go through shared memory, copied once.

A payload starts with a letter: `P` a pickle; `S` a pickle whose buffers lie in a segment, a file in /dev/shm or, for
what must survive a crash, an object: a file, or in an object store. A reader maps a file privately, and fetches what
is in a store: its arrays are writable and nobody else sees the writes. `B` is an `S` on its way to another machine,
with its buffers in it.
"""

from __future__ import annotations

import io
import itertools
import mmap
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import msgspec

from nubes.drivers.local import object_files, objects

INLINE_BYTES = 64 << 10  # buffers below this travel within the pickle
_ALIGN = 64
_names = itertools.count()


class _Header(msgspec.Struct, array_like=True):
    segment: str
    spans: list[tuple[int, int]]
    pickled: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Header).decode
_decode_carried = msgspec.msgpack.Decoder(tuple[bytes, bytes]).decode  # (header, content of the segment)


class Segments:
    """Where a process puts its large buffers. With `durable`, a crash does not take them: `folder` may be a URL then.

    Segments that nobody reads any more come back through `recycle` and are used again: their pages are there already.
    """

    def __init__(self, folder: str, durable: bool = False, keep: bool = True, spare_bytes: int = 1 << 30) -> None:
        self.folder = folder
        self.durable = durable
        self.far = objects.is_url(folder)  # writing there may take a while
        self.patient = False  # whether what is durable waits for room on a full disk
        self.keep = keep  # whether segments come back; if not, whoever reads one removes it
        self._spare: list[tuple[int, str, mmap.mmap]] = []
        self._used: dict[str, tuple[int, mmap.mmap]] = {}
        self._spare_bytes = spare_bytes

    def put(self, buffers: list[memoryview]) -> tuple[str, list[tuple[int, int]]]:
        """Copies buffers into one segment and returns its path and the span of each."""
        spans, size = [], 0
        for buffer in buffers:
            spans.append((size, buffer.nbytes))
            size += -(-buffer.nbytes // _ALIGN) * _ALIGN
        if self.durable:
            return self._put_object(buffers, spans), spans
        path, room, mapped = self._take(size)
        for (start, length), buffer in zip(spans, buffers, strict=True):
            mapped[start : start + length] = buffer
        if self.keep:
            self._used[path] = (room, mapped)
        return path, spans

    def _put_object(self, buffers: list[memoryview], spans: list[tuple[int, int]]) -> str:
        path = f"{self.folder}/{objects.PREFIX}{os.getpid()}-{next(_names)}-{os.urandom(8).hex()}"
        if self.far:
            objects.put(path, buffers, spans)
            return path
        object_files.write(path, buffers, spans, self.patient)
        return path

    def _take(self, size: int) -> tuple[str, int, mmap.mmap]:
        fitting = sorted((entry for entry in self._spare if size <= entry[0] <= 2 * size), key=lambda entry: entry[0])
        for entry in fitting:
            self._spare.remove(entry)
            if os.path.exists(entry[1]):  # the control plane removes those of a client that seemed to be gone
                return entry[1], entry[0], entry[2]
        path = f"{self.folder}/seg-{os.getpid()}-{next(_names)}-{os.urandom(4).hex()}"
        room = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(fd, 0, room)  # a full /dev/shm is an error here, not a SIGBUS later
            return path, room, mmap.mmap(fd, room)
        except OSError:
            os.unlink(path)
            raise
        finally:
            os.close(fd)

    def recycle(self, path: str) -> None:
        """Nobody reads this segment any more."""
        entry = self._used.pop(path, None)
        if entry is None:
            return
        if sum(spare[0] for spare in self._spare) + entry[0] <= self._spare_bytes:
            self._spare.append((entry[0], path, entry[1]))
        else:
            discard(path)

    def forget(self, path: str) -> None:
        """Somebody still reads this segment, or will: it is theirs now."""
        self._used.pop(path, None)

    def close(self) -> None:
        for _, path, _ in self._spare:
            discard(path)
        for path in self._used:
            discard(path)
        self._spare.clear()
        self._used.clear()


def discard(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


class _Large:
    """Stands in for large `bytes` while they are pickled: pickle itself takes only other buffers out of band."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def __reduce_ex__(self, protocol: Any) -> Any:
        return bytes, (pickle.PickleBuffer(self.raw),)


def _marked(value: Any) -> Any:
    """`value` with the large bytes at its top, or among a call's arguments, marked to go out of band."""
    if type(value) is bytes and len(value) >= INLINE_BYTES:
        return _Large(value)
    if type(value) is tuple and len(value) == 2 and type(value[0]) is tuple and type(value[1]) is dict:
        args, kwargs = value
        if any(type(one) is bytes for one in (*args, *kwargs.values())):
            marked = {name: _marked(one) if type(one) is bytes else one for name, one in kwargs.items()}
            return tuple(_marked(one) if type(one) is bytes else one for one in args), marked
    return value


def dumps(value: Any, segments: Segments | None, by_value: bool = False) -> bytes:
    """`value` as a payload. `by_value` also ships functions and classes that the reader cannot import.

    Raises what pickling raises (`pickle.PicklingError`, `TypeError`, `AttributeError`).
    """
    if not by_value:
        small = _small(value)
        if small is not None:
            return small
    value = _marked(value)
    out = io.BytesIO()
    large: list[memoryview] = []

    def keep_inline(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if segments is None or raw.nbytes < INLINE_BYTES:
            return True
        large.append(raw)
        return False

    try:
        if by_value:
            raise pickle.PicklingError
        pickle.Pickler(out, 5, buffer_callback=keep_inline).dump(value)
    except (pickle.PicklingError, AttributeError, TypeError):
        out = io.BytesIO()
        large.clear()
        cloudpickle.Pickler(out, 5, buffer_callback=keep_inline).dump(value)
    if not large:
        return b"P" + out.getvalue()
    assert segments is not None
    path, spans = segments.put(large)
    return b"S" + _encode(_Header(path, spans, out.getvalue()))


_SCALARS = (int, float, bool, type(None), str)


def _small(value: Any) -> bytes | None:
    """The short way for calls whose arguments are plain scalars."""
    if isinstance(value, tuple) and len(value) == 2 and type(value[0]) is tuple and not value[1]:
        if all(type(item) in _SCALARS for item in value[0]):
            return b"P" + pickle.dumps(value, 5)
    elif type(value) in _SCALARS:
        return b"P" + pickle.dumps(value, 5)
    return None


NO_ARGUMENTS = b"P" + pickle.dumps(((), {}), 5)


def loads(payload: bytes) -> Any:
    """The value of a payload."""
    if payload[:1] == b"P":
        return pickle.loads(memoryview(payload)[1:])
    return load_mapped(payload)[0]


def load_mapped(payload: bytes, unpickle: Callable[..., Any] = pickle.loads) -> tuple[Any, mmap.mmap | None]:
    """The value, and the private mapping its buffers lie in (None if they do not). `unpickle` may be a stricter one."""
    if payload[:1] == b"P":
        return unpickle(memoryview(payload)[1:]), None
    if payload[:1] == b"B":
        about, content = _decode_carried(memoryview(payload)[1:])
        header, fetched = _decode(about), memoryview(bytearray(content))
        return unpickle(header.pickled, buffers=[fetched[start : start + size] for start, size in header.spans]), None
    header = _decode(memoryview(payload)[1:])
    if objects.is_url(header.segment):
        fetched = memoryview(objects.get(header.segment))
        return unpickle(header.pickled, buffers=[fetched[start : start + size] for start, size in header.spans]), None
    fd = os.open(header.segment, os.O_RDONLY)
    try:
        mapped = mmap.mmap(fd, 0, access=mmap.ACCESS_COPY)
    finally:
        os.close(fd)
    view = memoryview(mapped)
    buffers = [view[start : start + length] for start, length in header.spans]
    view.release()
    value = unpickle(header.pickled, buffers=buffers)
    return value, mapped


def segment_of(payload: bytes) -> str:
    """The path of the segment a payload refers to; empty if none."""
    return _decode(memoryview(payload)[1:]).segment if payload[:1] == b"S" else ""


def carried(payload: bytes, last: bool = False) -> bytes:
    """The payload as it can go to another machine. `last`: nobody else reads its segment, which goes.

    One whose segment is gone already, with whoever made it, stays as it is: its reader will say so.
    """
    path = segment_of(payload)
    if not path or objects.is_url(path):
        return payload
    try:
        with open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        return payload
    if last and not is_object(path):
        discard(path)
    return b"B" + _encode((payload[1:], content))


def landed(payload: bytes, segments: Segments) -> bytes:
    """A payload that came from another machine, with its buffers in a segment of this one."""
    if payload[:1] != b"B":
        return payload
    about, content = _decode_carried(memoryview(payload)[1:])
    return placed(about, memoryview(content), segments)


def placed(about: bytes, content: memoryview, segments: Segments) -> bytes:
    """A payload whose header and whose segment's content came from another machine."""
    header = _decode(about)
    path, spans = segments.put([content[start : start + size] for start, size in header.spans])
    return b"S" + _encode(_Header(path, spans, header.pickled))


def is_far(payload: bytes) -> bool:
    """Whether reading a payload means to fetch it first, which may take a while."""
    return payload[:1] == b"S" and objects.is_url(segment_of(payload))


def is_object(path: str) -> bool:
    """Whether a segment is kept for others to read, too: its reader does not remove it."""
    return path.rpartition("/")[2].startswith(objects.PREFIX)


def clean(folder: Path, pid: int | None = None) -> None:
    """Removes the segments of one process, or all."""
    for path in folder.glob(f"seg-{pid if pid is not None else '*'}-*"):
        discard(str(path))
