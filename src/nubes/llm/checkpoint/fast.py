"""Checkpoints that load as fast as the disk reads: raw tensors back to back, and an index beside them.

From: ServerlessLLM: Low-Latency Serverless Inference for Large Language Models (OSDI 2024). A folder holds
`tensor_index.json`, name -> (partition, offset, size, shape, stride, dtype), and a `tensor.data_<k>` for each device.
Nothing is parsed by tensor: each is a view of the region its partition was read into. Tied tensors are there once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from nubes.llm.checkpoint.blocks import Blocks
from nubes.llm.errors import BrokenModel
from nubes.llm.spec import Shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nubes.llm.checkpoint.checkpoint import Checkpoint

INDEX = "tensor_index.json"
ABOUT = "model.json"
PAGE = 4096  # what direct I/O wants addresses, offsets and sizes to be multiples of
ALIGN = 64  # of tensors: a cache line
AGAIN = "Convert the model again."
KINDS = {"float32": "F32", "float16": "F16"}


class Entry(NamedTuple):
    partition: int
    offset: int
    size: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]  # in numbers, not bytes
    dtype: str


class About(msgspec.Struct, frozen=True):
    """What the tensors are a model of. `tokens`: the model whose tokens it takes."""

    shape: Shape
    tokens: str


def save(tensors: Mapping[str, NDArray[Any]], folder: Path, partitions: int = 1) -> int:
    """Writes a checkpoint; each partition has whole tensors and about as many bytes. The bytes written.

    Arrays that are the same memory are stored once. Names keep their order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, Entry] = {}
    seen: dict[tuple[int, int, tuple[int, ...]], Entry] = {}
    share = -(-sum(tensor.nbytes for tensor in tensors.values()) // partitions)
    written, at, partition = 0, 0, 0
    file = _data(folder, 0).open("wb")
    try:
        for name, given in tensors.items():
            tensor = np.ascontiguousarray(given)
            same = (given.ctypes.data, given.nbytes, given.shape)
            if same not in seen:
                if written >= share * (partition + 1):
                    _pad(file, at)
                    file.close()
                    partition, at = partition + 1, 0
                    file = _data(folder, partition).open("wb")
                at += file.write(b"\0" * (-at % ALIGN))
                stride = tuple(step // tensor.itemsize for step in tensor.strides)
                seen[same] = Entry(partition, at, tensor.nbytes, tensor.shape, stride, tensor.dtype.name)
                at += file.write(tensor.tobytes())
                written += tensor.nbytes
            index[name] = seen[same]
        _pad(file, at)
        file.flush()
        os.fsync(file.fileno())
    finally:
        file.close()
    (folder / INDEX).write_bytes(msgspec.json.encode(index))
    return written


def convert(checkpoint: Checkpoint, folder: Path) -> int:
    """A model of any format as fp32 in this one. The bytes written."""
    written = save({name: checkpoint.tensor(name) for name in checkpoint.names}, folder)
    (folder / ABOUT).write_bytes(msgspec.json.encode(About(checkpoint.shape, str(checkpoint.path))))
    return written


def index_of(folder: Path) -> dict[str, Entry]:
    """Raises `BrokenModel` if there is none, or files are shorter than it says."""
    try:
        index = msgspec.json.decode((folder / INDEX).read_bytes(), type=dict[str, Entry])
    except (OSError, msgspec.DecodeError) as error:
        raise BrokenModel(f"{folder} holds no index of tensors: {error}.", AGAIN) from None
    sizes = sizes_of(folder)
    for name, entry in index.items():
        width = np.dtype(entry.dtype).itemsize
        if entry.offset + entry.size > sizes.get(entry.partition, 0) or entry.size != width * int(np.prod(entry.shape)):
            raise BrokenModel(f"{folder} is cut short or damaged at {name}.", AGAIN)
    return index


def sizes_of(folder: Path) -> dict[int, int]:
    """The bytes of each partition."""
    return {int(path.name.rpartition("_")[2]): path.stat().st_size for path in folder.glob("tensor.data_*")}


def views(index: Mapping[str, Entry], regions: Mapping[int, memoryview]) -> dict[str, NDArray[Any]]:
    """Each tensor as a view of the region of its partition."""
    return {
        name: np.frombuffer(regions[entry.partition], entry.dtype, int(np.prod(entry.shape)), entry.offset).reshape(
            entry.shape
        )
        for name, entry in index.items()
    }


def open_fast(name: str, folder: Path) -> Checkpoint:
    """The converted model in a folder, in memory when this returns. Raises `BrokenModel`."""
    from nubes.llm.checkpoint.checkpoint import Checkpoint, load
    from nubes.llm.checkpoint.pool import Pool

    try:
        about = msgspec.json.decode((folder / ABOUT).read_bytes(), type=About)
    except (OSError, msgspec.DecodeError) as error:
        raise BrokenModel(f"{folder / ABOUT} does not say what model this is: {error}.", AGAIN) from None
    tensors = Pool(0).load(folder).tensors
    return Checkpoint(name, folder, about.shape, _Weights(tensors), lambda: load(Path(about.tokens)).tokens)


class _Weights:
    """`nubes.llm.checkpoint.checkpoint.Weights` over tensors in memory."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._tensors = tensors
        self.bytes = sum(tensor.nbytes for tensor in tensors.values())
        self.shapes: Mapping[str, tuple[int, ...]] = {name: tensor.shape for name, tensor in tensors.items()}

    def raw(self, name: str) -> Blocks:
        tensor = self._tensors[name]
        return Blocks(KINDS[tensor.dtype.name], tensor)


def _data(folder: Path, partition: int) -> Path:
    return folder / f"tensor.data_{partition}"


def _pad(file: Any, at: int) -> None:
    file.write(b"\0" * (-at % PAGE))
