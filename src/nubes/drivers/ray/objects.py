"""Large arguments and results through Ray's object store.

A payload that goes this way is `R`, then its header, the name of the agent's machine, and a key. The control plane is
the one who calls: it gives arguments to the agent, and takes results from it; the messages between them only name keys.
"""

from __future__ import annotations

import itertools
import mmap
import os
import threading
from collections.abc import Mapping
from typing import Any

import msgspec

from nubes.drivers.local import payload
from nubes.drivers.local.objects import is_url

LEAST_BYTES = 1 << 20  # below this they go along with the messages, which is faster
PATIENCE_S = 60.0  # how long arguments may take to come

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[bytes, str, int]).decode


def _is_large(path: str) -> bool:
    try:
        return path != "" and not is_url(path) and os.path.getsize(path) >= LEAST_BYTES
    except FileNotFoundError:
        return False


def _content(path: str) -> Any:
    """What is in a segment, as an array over the file."""
    import numpy as np

    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, np.uint8)


class PlaneObjects:
    """The control plane's `Carrier`. `agents` are the actors, by the names of their machines."""

    def __init__(self, agents: Mapping[str, Any]) -> None:
        self._agents = agents
        self._keys = itertools.count(1)

    def pack(self, data: bytes, to: str) -> bytes:
        path = payload.segment_of(data)
        agent = self._agents.get(to)
        if agent is None or not _is_large(path):
            return payload.carried(data)
        import ray

        key = next(self._keys)
        agent.give.remote(key, ray.put(_content(path)))
        return b"R" + _encode((data[1:], to, key))

    def waits(self, data: bytes) -> bool:
        return data[:1] == b"R"

    def unpack(self, data: bytes, segments: payload.Segments) -> bytes:
        """Raises what Ray raises if the object is gone with its machine."""
        if data[:1] != b"R":
            return data
        import ray

        header, name, key = _decode(memoryview(data)[1:])
        agent = self._agents.get(name)
        if agent is None:
            raise ConnectionError(f"machine {name} is gone")
        return payload.placed(header, memoryview(ray.get(agent.take.remote(key))), segments)


class AgentObjects:
    """An agent's `Carrier`; the actor it runs in passes `give` and `take` on to it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._keys = itertools.count(1)
        self._given: dict[int, Any] = {}
        self._to_take: dict[int, Any] = {}
        self._came = threading.Condition()

    def give(self, key: int, content: Any) -> None:
        with self._came:
            self._given[key] = content
            self._came.notify_all()

    def take(self, key: int) -> Any:
        return self._to_take.pop(key)

    def pack(self, data: bytes, to: str) -> bytes:
        path = payload.segment_of(data)
        if not _is_large(path):
            return payload.carried(data, last=True)
        key = next(self._keys)
        self._to_take[key] = _content(path)
        if not payload.is_object(path):
            payload.discard(path)
        return b"R" + _encode((data[1:], self._name, key))

    def waits(self, data: bytes) -> bool:
        return data[:1] == b"R"

    def unpack(self, data: bytes, segments: payload.Segments) -> bytes:
        """Waits for what was given. Raises `TimeoutError`."""
        if data[:1] != b"R":
            return data
        header, _, key = _decode(memoryview(data)[1:])
        with self._came:
            if not self._came.wait_for(lambda: key in self._given, PATIENCE_S):
                raise TimeoutError(f"they did not come within {PATIENCE_S:g} s")
            content = self._given.pop(key)
        return payload.placed(header, memoryview(content), segments)
