"""Loads checkpoints in chunks over several tiers, and keeps them in memory for as long as there is room.

From: ServerlessLLM (OSDI 2024). Chunks flow from a remote place to the disk and into memory as soon as each is there;
several threads read a disk past the page cache, the next chunk whoever is free, to the place where tensors will lie.
They do so in bites through small buffers that are used again and again: what a disk writes is then still in the
processor's cache, and is copied from there while others read. Where disks are virtual, whoever writes for them would
otherwise wait for memory.
"""

from __future__ import annotations

import mmap
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from nubes.llm.checkpoint.fast import ABOUT, INDEX, PAGE, index_of, sizes_of, views
from nubes.llm.errors import BrokenModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bites = SimpleQueue[memoryview]

CHUNK = 16 << 20
BITE = 1 << 20
SMOOTHING = 0.3  # how much the last load counts in the mean bandwidth
POPULATE = 23  # MADV_POPULATE_WRITE
BASIS = 1e9  # bytes/s, before anything was measured


class Loaded:
    """A checkpoint in memory. `tensors` are views that nobody writes to; they hold until `close`."""

    def __init__(self, tensors: dict[str, NDArray[Any]], done: Callable[[], None]) -> None:
        self.tensors = tensors
        self._done: Callable[[], None] | None = done

    def close(self) -> None:
        """Its memory may be given to others. The views must not be used any more."""
        done, self._done = self._done, None
        if done is not None:
            self.tensors = {}
            done()

    def __enter__(self) -> Loaded:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class _Kept:
    regions: dict[int, memoryview]
    places: list[tuple[int, int]]  # in the arena: start, end
    users: int = 0


class Pool:
    """`capacity_bytes` of memory for checkpoints, taken at once; the least recently used one in it is given up first.

    One that finds no room because others are in use, or are too few, gets memory of its own, and is not kept.
    `bandwidth`: bytes/s of each tier as measured so far.
    """

    def __init__(self, capacity_bytes: int, *, chunk_bytes: int = CHUNK, threads: int = 6) -> None:
        self.capacity_bytes = capacity_bytes // PAGE * PAGE
        self.chunk_bytes = -(-chunk_bytes // PAGE) * PAGE
        self.threads = threads
        self.bandwidth = {"disk": BASIS, "remote": BASIS}
        self._kept: OrderedDict[Path, _Kept] = OrderedDict()
        self._bites: Bites = SimpleQueue()
        for _ in range(threads):
            self._bites.put(_memory(BITE))
        self._arena = _memory(self.capacity_bytes) if self.capacity_bytes else memoryview(b"")

    @property
    def used_bytes(self) -> int:
        return sum(end - start for kept in self._kept.values() for start, end in kept.places)

    def holds(self, folder: Path) -> bool:
        return folder.resolve() in self._kept

    def load(self, folder: Path, remote: Path | None = None) -> Loaded:
        """A checkpoint from memory if it is there, else from `folder`, else from `remote`, a folder far away.

        In the last case `folder` is filled on the way. Raises `BrokenModel`.
        """
        key = folder.resolve()
        kept = self._kept.get(key)
        if kept is None:
            far = remote if remote is not None and not (folder / INDEX).exists() else None
            kept, fits = self._room(sizes_of(far or folder))
            regions, begun = kept.regions, perf_counter()
            if far is not None:
                self._fetch(far, folder, regions)
            else:
                self._read(folder, regions)
            self._measure("disk" if far is None else "remote", regions, perf_counter() - begun)
            if fits:
                self._kept[key] = kept
        else:
            self._kept.move_to_end(key)
        tensors = views(index_of(folder), kept.regions)
        kept.users += 1
        return Loaded(tensors, lambda: self._closed(kept))

    def _closed(self, kept: _Kept) -> None:
        kept.users -= 1

    def drop(self, folder: Path) -> None:
        """Gives its memory up, unless somebody uses it."""
        key = folder.resolve()
        if key in self._kept and not self._kept[key].users:
            del self._kept[key]

    def estimate_s(self, folder: Path, size_bytes: int, queued_bytes: int = 0) -> float:
        """Seconds until a checkpoint of that size would be in memory, after what is queued before it."""
        tier = "disk" if (folder / INDEX).exists() else "remote"
        return 0.0 if self.holds(folder) else (queued_bytes + size_bytes) / self.bandwidth[tier]

    def _measure(self, tier: str, regions: Mapping[int, memoryview], took_s: float) -> None:
        measured = sum(region.nbytes for region in regions.values()) / max(took_s, 1e-9)
        self.bandwidth[tier] += SMOOTHING * (measured - self.bandwidth[tier])

    # -- memory ---------------------------------------------------------------------------------------------------

    def _room(self, sizes: Mapping[int, int]) -> tuple[_Kept, bool]:
        """Memory for each partition, and whether it is of the pool; those that nobody uses make room."""
        for number, size in sizes.items():
            if size % PAGE or not size:
                raise BrokenModel(f"tensor.data_{number} is cut short.", "Convert the model again.")
        idle = [key for key, kept in self._kept.items() if not kept.users]
        while True:
            places = self._place(list(sizes.values()))
            if places is not None:
                regions = {number: self._arena[start:end] for number, (start, end) in zip(sizes, places, strict=True)}
                return _Kept(regions, places), True
            if not idle:
                return _Kept({number: _memory(size) for number, size in sizes.items()}, []), False
            del self._kept[idle.pop(0)]

    def _place(self, sizes: list[int]) -> list[tuple[int, int]] | None:
        """The first gaps of the arena that these fit in."""
        taken = sorted(place for kept in self._kept.values() for place in kept.places)
        found: list[tuple[int, int]] = []
        for size in sizes:
            at = 0
            for start, end in sorted(taken + found):
                if start - at >= size:
                    break
                at = end
            if at + size > self.capacity_bytes:
                return None
            found.append((at, at + size))
        return found

    # -- tiers ----------------------------------------------------------------------------------------------------

    def _read(self, folder: Path, regions: Mapping[int, memoryview]) -> None:
        """Disk to memory."""
        self._each(regions, lambda number, region: _Disk(folder / f"tensor.data_{number}", region, self._bites).read)

    def _fetch(self, remote: Path, folder: Path, regions: Mapping[int, memoryview]) -> None:
        """Remote to memory, and from there to disk, each chunk by itself. The index comes last: then all is there."""
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(self.threads) as writers:

            def reader(number: int, region: memoryview) -> Callable[[int, int], None]:
                name = f"tensor.data_{number}"
                source, copy = _Disk(remote / name, region), _Disk(folder / name, region, write=True)

                def move(start: int, end: int) -> None:
                    source.read(start, end)
                    writes.append(writers.submit(copy.write, start, end))

                return move

            writes: list[Any] = []
            self._each(regions, reader)
            for write in writes:
                write.result()
        for name in (ABOUT, INDEX):
            if (remote / name).exists():
                shutil.copyfile(remote / name, folder / name)

    def _each(
        self, regions: Mapping[int, memoryview], make: Callable[[int, memoryview], Callable[[int, int], None]]
    ) -> None:
        """Calls what `make` returns for each partition with the bounds of all of its chunks, in several threads."""
        with ThreadPoolExecutor(self.threads) as pool:
            jobs = []
            for number, region in regions.items():
                move = make(number, region)
                for start in range(0, region.nbytes, self.chunk_bytes):
                    jobs.append(pool.submit(move, start, min(start + self.chunk_bytes, region.nbytes)))
            for job in jobs:
                job.result()


def _memory(size: int) -> memoryview:
    """Whole pages, there before they are read into: a disk is slowed down by pages that have yet to come."""
    pages = mmap.mmap(-1, size)
    with suppress(OSError, AttributeError):
        pages.madvise(mmap.MADV_HUGEPAGE)
    with suppress(OSError):
        pages.madvise(POPULATE)
    return memoryview(pages)


class _Disk:
    """A file that is read into, or written from, the same place of a region.

    Past the page cache, where that works, if it is written, or read in `bites`.
    """

    def __init__(self, path: Path, region: memoryview, bites: Bites | None = None, write: bool = False) -> None:
        flags = os.O_CREAT | os.O_WRONLY if write else os.O_RDONLY
        self.path = path
        self._region = region
        self._bites = bites
        try:
            self._fd = os.open(path, flags | (os.O_DIRECT if write or bites is not None else 0), 0o644)
        except OSError:  # a file system without it
            self._fd = os.open(path, flags, 0o644)
            self._bites = None

    def read(self, start: int, end: int) -> None:
        if self._bites is None:
            while start < end:
                start += self._some(self._region[start:end], start)
            return
        bite = self._bites.get()
        try:
            while start < end:
                count = self._some(bite[: end - start], start)
                np.copyto(np.frombuffer(self._region[start : start + count], "u1"), np.frombuffer(bite[:count], "u1"))
                start += count
        finally:
            self._bites.put(bite)

    def _some(self, place: memoryview, at: int) -> int:
        count = os.preadv(self._fd, [place], at)
        if not count:
            raise BrokenModel(f"{self.path} is cut short.", "Convert the model again.")
        return count

    def write(self, start: int, end: int) -> None:
        while start < end:
            start += os.pwritev(self._fd, [self._region[start:end]], start)

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)
