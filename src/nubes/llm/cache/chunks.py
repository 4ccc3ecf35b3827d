"""States on disk: written a token of all layers at a time, read a layer of all tokens at a time."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep
from typing import IO

import numpy as np
from numpy.typing import NDArray

from nubes.kernel.errors import NotFound

CHUNK = 64  # tokens of one layer that lie together
FLOATS = np.dtype(np.float32)


class ChunkStore:
    """Rows of numbers for each layer of each session, in files that chunks go to in turn.

    Rows that do not fill a chunk stay in memory until `flush`. Saving is in two stages: `save` copies the rows and
    returns, a thread puts chunks together and writes them. With `bandwidth` (bytes/s) reading takes at least as long as
    a device of that speed would. From: HCache (EuroSys 2025).
    """

    def __init__(self, folder: Path, files: int = 2, bandwidth: float | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.bandwidth = bandwidth
        self.bytes = 0  # written
        self._files: list[IO[bytes]] = [(folder / f"chunks-{nth}.bin").open("w+b", buffering=0) for nth in range(files)]
        self._ends = [0] * files
        self._next = 0
        self._places: dict[tuple[str, int], list[tuple[int, int, int]]] = {}  # of each chunk: file, offset, rows
        self._rest: dict[tuple[str, int], list[NDArray[np.float32]]] = {}
        self._widths: dict[tuple[str, int], int] = {}
        self._writer = ThreadPoolExecutor(1, "nubes-llm-chunks")
        self._pending: Future[None] | None = None
        self._lock = threading.Lock()
        self._busy_until_s = 0.0

    def save(self, session: str, first: int, states: NDArray[np.float32]) -> None:
        """`states` [layers, rows, width] of the layers from `first` on, for the session's next tokens."""
        copied = states.copy()
        self._pending = self._writer.submit(self._append, session, first, copied)

    def flush(self, session: str) -> None:
        """All that was saved of the session is in the files when this returns."""
        self._writer.submit(self._flush, session).result()

    def rows(self, session: str, layer: int) -> int:
        """How many tokens are in the files."""
        return sum(rows for _, _, rows in self._places.get((session, layer), ()))

    def read(self, session: str, layer: int) -> NDArray[np.float32]:
        """[tokens, width] of one layer. Raises `NotFound`."""
        places = self._places.get((session, layer))
        if not places:
            raise NotFound(f"Nothing of layer {layer} of session {session!r} is stored.", "Save and flush it before.")
        width = self._widths[session, layer]
        out = np.empty((self.rows(session, layer), width), FLOATS)
        at = 0
        for file, offset, rows in places:
            with self._lock:
                self._files[file].seek(offset)
                data = self._files[file].read(rows * width * FLOATS.itemsize)
            out[at : at + rows] = np.frombuffer(data, FLOATS).reshape(rows, width)
            at += rows
        self._throttle(out.nbytes)
        return out

    def drop(self, session: str) -> None:
        """Forgets a session; what its chunks took in the files is not used again."""
        for of in (self._places, self._rest, self._widths):
            for key in [key for key in of if key[0] == session]:
                del of[key]

    def close(self) -> None:
        self._writer.shutdown()
        for file in self._files:
            file.close()

    def _append(self, session: str, first: int, states: NDArray[np.float32]) -> None:
        for layer, rows in enumerate(states, first):
            key = (session, layer)
            self._widths[key] = rows.shape[1]
            rest = self._rest.setdefault(key, [])
            rest.append(rows)
            if sum(map(len, rest)) >= CHUNK:
                whole = np.concatenate(rest)
                full = len(whole) // CHUNK * CHUNK
                for at in range(0, full, CHUNK):
                    self._write(key, whole[at : at + CHUNK])
                self._rest[key] = [whole[full:]] if full < len(whole) else []

    def _flush(self, session: str) -> None:
        for key in [key for key, rest in self._rest.items() if key[0] == session and rest]:
            self._write(key, np.concatenate(self._rest.pop(key)))

    def _write(self, key: tuple[str, int], rows: NDArray[np.float32]) -> None:
        file, self._next = self._next, (self._next + 1) % len(self._files)
        data = np.ascontiguousarray(rows, FLOATS).tobytes()
        with self._lock:
            self._files[file].seek(self._ends[file])
            self._files[file].write(data)
        self._places.setdefault(key, []).append((file, self._ends[file], len(rows)))
        self._ends[file] += len(data)
        self.bytes += len(data)

    def _throttle(self, size: int) -> None:
        if self.bandwidth is not None:
            self._busy_until_s = max(self._busy_until_s, monotonic() - 1e-3) + size / self.bandwidth
            wait_s = self._busy_until_s - monotonic()
            if wait_s > 0:
                sleep(wait_s)
