"""How weights lie in model files: plain numbers, or rows of small blocks that share a scale.

Every quantised format here is affine in groups: value = scale * quant + min. A row is cut into blocks, a block into
groups; blocks follow each other as in the file, so that kernels run from them as they are.
Layouts are those of ggml, in which GGUF files are written.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

_K = 256  # values in a block of the K formats
_HALF = "<f2"

DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype(_HALF),
    "BF16": np.dtype("<u2"),  # the upper half of a float32; numpy has no such type
    # Two quants a byte: byte i holds value i in its lower half and value i + 16 in its upper half.
    "Q4_0": np.dtype([("scale", _HALF), ("quants", "u1", 16)]),  # min = -8 * scale
    "Q4_1": np.dtype([("scale", _HALF), ("min", _HALF), ("quants", "u1", 16)]),
    # The fifth bit of value i is bit i of `high`.
    "Q5_0": np.dtype([("scale", _HALF), ("high", "<u4"), ("quants", "u1", 16)]),  # min = -16 * scale
    "Q5_1": np.dtype([("scale", _HALF), ("min", _HALF), ("high", "<u4"), ("quants", "u1", 16)]),
    "Q8_0": np.dtype([("scale", _HALF), ("quants", "i1", 32)]),
    # Eight groups of 32; `scales` packs eight 6-bit scales and eight 6-bit mins, themselves scaled.
    "Q4_K": np.dtype([("scale", _HALF), ("min", _HALF), ("scales", "u1", 12), ("quants", "u1", 128)]),
    "Q5_K": np.dtype(
        [("scale", _HALF), ("min", _HALF), ("scales", "u1", 12), ("high", "u1", 32), ("quants", "u1", 128)]
    ),
    # Sixteen groups of 16.
    "Q6_K": np.dtype([("quants", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), ("scale", _HALF)]),
}


def block_size(kind: str) -> int:
    """Values in one element of `DTYPES[kind]`."""
    return 1 if DTYPES[kind].names is None else _K if kind.endswith("K") else 32


class Blocks(NamedTuple):
    """One tensor as its file holds it.

    `data` has the dtype `DTYPES[kind]` and the shape (..., values in a row // block_size(kind)).
    """

    kind: str
    data: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the values."""
        return (*self.data.shape[:-1], self.data.shape[-1] * block_size(self.kind))


class Affine(NamedTuple):
    """Values as scale * quants + min, group by group."""

    quants: Array  # int8 or uint8 [..., groups in a row, values in a group]
    scale: Floats  # [..., groups in a row]
    min: Floats | None  # the same; None: zeros


def affine(blocks: Blocks) -> Affine:
    """A quantised tensor's quants, one a byte, and what turns them into values. Raises KeyError for plain numbers."""
    quants, scale, low = _UNPACK[blocks.kind](blocks.data)
    rows = blocks.data.shape[:-1]
    width = 16 if blocks.kind == "Q6_K" else 32
    return Affine(
        quants.reshape(*rows, -1, width), scale.reshape(*rows, -1), None if low is None else low.reshape(*rows, -1)
    )


def dequantise(blocks: Blocks) -> Floats:
    """The values as float32; a view of the file's own bytes where these are float32 already."""
    if blocks.kind == "F32":
        return blocks.data.astype(np.float32, copy=False)
    if blocks.kind == "F16":
        return blocks.data.astype(np.float32)
    if blocks.kind == "BF16":
        return (blocks.data.astype(np.uint32) << 16).view(np.float32)
    quants, scale, low = affine(blocks)
    values = quants.astype(np.float32)
    values *= scale[..., None]
    if low is not None:
        values += low[..., None]
    return values.reshape(blocks.shape)


_Unpacked = tuple[Array, Floats, Floats | None]


def _float(half: Array) -> Floats:
    return half.astype(np.float32)


def _nibbles(packed: Array) -> Array:
    """[..., n] bytes to [..., 2, n] lower and upper halves."""
    return np.stack([packed & 15, packed >> 4], axis=-2)


def _q4_0(block: Array) -> _Unpacked:
    scale = _float(block["scale"])
    return _nibbles(block["quants"]), scale, -8 * scale


def _q4_1(block: Array) -> _Unpacked:
    return _nibbles(block["quants"]), _float(block["scale"]), _float(block["min"])


def _fifth(block: Array) -> Array:
    low = _nibbles(block["quants"]).reshape(*block.shape, 32)
    high = (block["high"][..., None] >> np.arange(32, dtype=np.uint32)) & 1
    return low | (high << 4).astype(np.uint8)


def _q5_0(block: Array) -> _Unpacked:
    scale = _float(block["scale"])
    return _fifth(block), scale, -16 * scale


def _q5_1(block: Array) -> _Unpacked:
    return _fifth(block), _float(block["scale"]), _float(block["min"])


def _q8_0(block: Array) -> _Unpacked:
    return block["quants"], _float(block["scale"]), None


def _scaled(block: Array) -> tuple[Floats, Floats]:
    """Scale and min of the eight groups of a Q4_K or Q5_K block.

    Groups 0 to 3 have theirs in the lower 6 bits of bytes 0-3 and 4-7. Those of groups 4 to 7 have their lower four
    bits in the halves of bytes 8-11 and their upper two on top of bytes 0-3 and 4-7.
    """
    first, second, last = (block["scales"][..., i : i + 4] for i in (0, 4, 8))
    scales = np.concatenate([first & 63, (last & 15) | (first >> 6 << 4)], axis=-1)
    mins = np.concatenate([second & 63, (last >> 4) | (second >> 6 << 4)], axis=-1)
    return _float(block["scale"])[..., None] * scales, -_float(block["min"])[..., None] * mins


def _q4_k(block: Array) -> _Unpacked:
    return _nibbles(block["quants"].reshape(*block.shape, 4, 32)), *_scaled(block)


def _q5_k(block: Array) -> _Unpacked:
    quants = _nibbles(block["quants"].reshape(*block.shape, 4, 32)).reshape(*block.shape, 8, 32)
    high = (block["high"][..., None, :] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    return quants | (high << 4), *_scaled(block)


def _q6_k(block: Array) -> _Unpacked:
    """Each half of 128 values: four runs of 32, the lower bits in two halves of 64 bytes, the upper two in 32 bytes."""
    low = _nibbles(block["quants"].reshape(*block.shape, 2, 64)).reshape(*block.shape, 2, 4, 32)
    high = (block["high"].reshape(*block.shape, 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None]) & 3
    quants = (low | (high << 4)).astype(np.int8) - np.int8(32)
    return quants, _float(block["scale"])[..., None] * block["scales"], None


_UNPACK = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1,
    "Q8_0": _q8_0, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
}  # fmt: skip
