"""The KV of single tokens in a runtime's blocks, whatever these look like: to read, write and move it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nubes.llm.spec import Shape

Places = NDArray[Any]
Move = tuple[int, int, int, int]  # block and offset that KV comes from, and those it goes to

_GROUP = 16  # tokens whose keys lie across


class Slots(Protocol):
    """Keys (as rotated) and values of tokens, which are given as `blocks` and `offsets` in these [tokens]."""

    kv: Any  # [blocks, ...]
    pages: Any  # the same memory as numbers [blocks, values], for adapters to lie in
    dtype: Any  # NumPy's, of numbers that hold what is read without loss that matters

    def read(self, layer: int, blocks: Places, offsets: Places) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Keys and values [tokens, kv_heads, head_dim]."""
        ...

    def write(
        self, layer: int, blocks: Places, offsets: Places, keys: NDArray[np.float32], values: NDArray[np.float32]
    ) -> None: ...

    def move(self, moves: Sequence[Move]) -> None:
        """Single tokens' KV of all layers, all at once."""
        ...


def block_bytes(shape: Shape, block_size: int, value_bytes: int) -> int:
    """Of KV in so many bytes a number: 1, and a scale for each token's keys and values of a head, 2 or 4."""
    scale_bytes = 4 if value_bytes == 1 else 0
    return 2 * shape.layers * shape.kv_heads * block_size * (shape.head_dim * value_bytes + scale_bytes)


class Floats:
    """KV as it is computed: NumPy arrays, or PyTorch's."""

    def __init__(self, shape: Shape, array: Any, block_size: int) -> None:
        self.kv, blocks, self.dtype = array, len(array), np.float32
        self.pages = array.reshape(blocks, -1)
        both = array.reshape(blocks, shape.layers, 2, shape.kv_heads, shape.head_dim * block_size)
        self.keys = both[:, :, 0].reshape(blocks, shape.layers, shape.kv_heads, shape.head_dim, block_size)
        self.values = both[:, :, 1].reshape(blocks, shape.layers, shape.kv_heads, block_size, shape.head_dim)

    def read(self, layer: int, blocks: Places, offsets: Places) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return as_rows(self.keys[blocks, layer, :, :, offsets]), as_rows(self.values[blocks, layer, :, offsets])

    def write(
        self, layer: int, blocks: Places, offsets: Places, keys: NDArray[np.float32], values: NDArray[np.float32]
    ) -> None:
        self.keys[blocks, layer, :, :, offsets] = like(keys, self.keys)
        self.values[blocks, layer, :, offsets] = like(values, self.values)

    def move(self, moves: Sequence[Move]) -> None:
        if not moves:
            return
        blocks, offsets, to_blocks, to_offsets = np.array(moves, np.int64).T
        self.keys[to_blocks, :, :, :, to_offsets] = self.keys[blocks, :, :, :, offsets]
        self.values[to_blocks, :, :, to_offsets] = self.values[blocks, :, :, offsets]


class Bytes:
    """KV in signed bytes, with a scale for each token's keys and values of a head; laid out as in attention.h."""

    def __init__(self, shape: Shape, array: NDArray[np.uint8], block_size: int) -> None:
        s, size, each = shape, block_size, shape.kv_heads * block_size * shape.head_dim
        self.kv, blocks, self.dtype = array, len(array), np.float16
        self.pages = self.kv.reshape(blocks, -1).view(np.float16)
        keys, values = self.kv[:, :, :each], self.kv[:, :, each : 2 * each]
        self._keys = keys.reshape(blocks, s.layers, s.kv_heads, size // _GROUP, s.head_dim // 4, _GROUP, 4)
        self._values = values.view(np.int8).reshape(blocks, s.layers, s.kv_heads, size // 2, s.head_dim, 2)
        self._scales = self.kv[:, :, 2 * each :].view(np.float32).reshape(blocks, s.layers, 2, s.kv_heads, size)

    def read(self, layer: int, blocks: Places, offsets: Places) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        keys = self._keys[blocks, layer, :, offsets // _GROUP, :, offsets % _GROUP].astype(np.int16) - 128
        values = self._values[blocks, layer, :, offsets // 2, :, offsets % 2]
        scales = self._scales[blocks, layer, :, :, offsets][..., None]
        return keys.reshape(values.shape) * scales[:, 0], values * scales[:, 1]

    def write(
        self, layer: int, blocks: Places, offsets: Places, keys: NDArray[np.float32], values: NDArray[np.float32]
    ) -> None:
        (keys, key_scales), (values, value_scales) = _rounded(keys), _rounded(values)
        quads = (keys + 128).astype(np.uint8).reshape(*keys.shape[:-1], -1, 4)
        self._keys[blocks, layer, :, offsets // _GROUP, :, offsets % _GROUP] = quads
        self._values[blocks, layer, :, offsets // 2, :, offsets % 2] = values
        self._scales[blocks, layer, :, :, offsets] = np.stack((key_scales, value_scales), 1)

    def move(self, moves: Sequence[Move]) -> None:
        if not moves:
            return
        blocks, offsets, to, at = np.array(moves, np.int64).T
        keys = self._keys[blocks, :, :, offsets // _GROUP, :, offsets % _GROUP]
        self._keys[to, :, :, at // _GROUP, :, at % _GROUP] = keys
        self._values[to, :, :, at // 2, :, at % 2] = self._values[blocks, :, :, offsets // 2, :, offsets % 2]
        self._scales[to, :, :, :, at] = self._scales[blocks, :, :, :, offsets]


def _rounded(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Whole numbers of at most 127, and their scales [...]. A row with a NaN gets one for its scale."""
    top = np.abs(x).max(-1)
    inverse = np.divide(np.float32(127), top, out=np.zeros_like(top), where=top > 0)
    return np.nan_to_num(np.rint(x * inverse[..., None])), top / np.float32(127)


def as_rows(array: Any) -> NDArray[np.float32]:
    """A contiguous float32 array of what lies wherever."""
    if not isinstance(array, np.ndarray):
        array = array.detach().float().cpu().numpy()
    return np.ascontiguousarray(array, np.float32)


def like(rows: NDArray[np.float32], other: Any) -> Any:
    """An array of the kind, type and device of `other`."""
    if isinstance(other, np.ndarray):
        return rows.astype(other.dtype, copy=False)
    import torch

    return torch.from_numpy(np.ascontiguousarray(rows)).to(other.device, other.dtype)
