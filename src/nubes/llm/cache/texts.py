"""KV of texts, each computed alone: in memory while there is room, then on disk, and forgotten last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from time import monotonic, sleep

import numpy as np
from numpy.typing import NDArray


def key_of(model: str, tokens: Sequence[int]) -> str:
    """Names a text's KV by what it is computed from."""
    return blake2b(model.encode() + b"\0" + np.asarray(tokens, "<i4").tobytes(), digest_size=16).hexdigest()


@dataclass
class Entry:
    shape: tuple[int, ...]  # [layers, 2, tokens, kv_heads, head_dim]
    dtype: np.dtype[np.generic]
    held: NDArray[np.generic] | None  # in memory, or in a file

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize


class TextStore:
    """Two tiers, the least recently used of each leaving it first.

    With `bandwidth` (bytes/s) a layer from disk takes at least as long as a device of that speed would.
    """

    def __init__(
        self, folder: Path | None, memory_bytes: int = 1 << 30, disk_bytes: int = 0, bandwidth: float | None = None
    ) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.memory_bytes = memory_bytes
        self.disk_bytes = disk_bytes if folder is not None else 0
        self.bandwidth = bandwidth
        self.entries: OrderedDict[str, Entry] = OrderedDict()  # used last stands last
        self.held = {True: 0, False: 0}  # bytes in memory, on disk
        self._busy_until_s = 0.0

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def put(self, key: str, kv: NDArray[np.generic]) -> None:
        """Keeps a text's KV [layers, 2, tokens, kv_heads, head_dim]."""
        self.drop(key)
        self.entries[key] = Entry(kv.shape, kv.dtype, kv)
        self.held[True] += kv.nbytes
        self._shrink()

    def touch(self, key: str) -> None:
        """Somebody uses it now."""
        self.entries.move_to_end(key)

    def on_disk(self, keys: Sequence[str]) -> int:
        """Bytes of these texts that are not in memory."""
        return sum(entry.bytes for key in keys if (entry := self.entries[key]).held is None)

    def layer(self, key: str, layer: int) -> NDArray[np.generic]:
        """[2, tokens, kv_heads, head_dim] of a text that is there."""
        entry = self.entries[key]
        if entry.held is not None:
            return np.asarray(entry.held[layer])
        size = entry.bytes // entry.shape[0]
        data = np.fromfile(self._path(key), entry.dtype, size // entry.dtype.itemsize, offset=layer * size)
        if self.bandwidth is not None:
            self._busy_until_s = max(self._busy_until_s, monotonic() - 1e-3) + size / self.bandwidth
            sleep(max(0.0, self._busy_until_s - monotonic()))
        return data.reshape(entry.shape[1:])

    def demote(self, key: str) -> None:
        """From memory to disk, or away if there is no room on disk."""
        entry = self.entries[key]
        if entry.held is None:
            return
        if entry.bytes > self.disk_bytes:
            self.drop(key)
            return
        entry.held.tofile(self._path(key))
        entry.held = None
        self.held[True] -= entry.bytes
        self.held[False] += entry.bytes

    def drop(self, key: str) -> None:
        entry = self.entries.pop(key, None)
        if entry is not None:
            self.held[entry.held is not None] -= entry.bytes
            if entry.held is None:
                self._path(key).unlink(missing_ok=True)

    def _shrink(self) -> None:
        for limit, memory in ((self.memory_bytes, True), (self.disk_bytes, False)):
            for key in list(self.entries):
                if self.held[memory] <= limit:
                    break
                if (self.entries[key].held is not None) == memory:
                    self.demote(key) if memory else self.drop(key)

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.kv"
