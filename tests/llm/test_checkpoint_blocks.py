"""Block formats: against a loop that follows the format's description value by value."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nubes.llm.checkpoint.blocks import DTYPES, Blocks, affine, block_size, dequantise

QUANTISED = [kind for kind in DTYPES if DTYPES[kind].names]


def half(raw: bytes) -> np.float32:
    return np.float32(struct.unpack("<e", raw)[0])


def nibble(packed: bytes, i: int) -> int:
    """Value i of 32 that share 16 bytes."""
    return packed[i] & 15 if i < 16 else packed[i - 16] >> 4


def k_scales(packed: bytes, group: int) -> tuple[int, int]:
    if group < 4:
        return packed[group] & 63, packed[group + 4] & 63
    scale = packed[group + 4] & 15 | packed[group - 4] >> 6 << 4
    return scale, packed[group + 4] >> 4 | packed[group] >> 6 << 4


def scalar(kind: str, raw: bytes) -> list[float]:
    """One block, slowly."""
    if kind == "Q4_0":
        return [half(raw[:2]) * np.float32(nibble(raw[2:], i) - 8) for i in range(32)]
    if kind == "Q4_1":
        return [half(raw[:2]) * np.float32(nibble(raw[4:], i)) + half(raw[2:4]) for i in range(32)]
    if kind in ("Q5_0", "Q5_1"):
        start = 2 if kind == "Q5_0" else 4
        high = int.from_bytes(raw[start : start + 4], "little")
        quants = [nibble(raw[start + 4 :], i) + 16 * (high >> i & 1) for i in range(32)]
        if kind == "Q5_0":
            return [half(raw[:2]) * np.float32(quant - 16) for quant in quants]
        return [half(raw[:2]) * np.float32(quant) + half(raw[2:4]) for quant in quants]
    if kind == "Q8_0":
        return [half(raw[:2]) * np.float32(quant) for quant in struct.unpack("32b", raw[2:])]
    if kind in ("Q4_K", "Q5_K"):
        quants = raw[-128:]
        values = []
        for i in range(256):
            group, byte = i // 32, i // 64 * 32 + i % 32
            quant = quants[byte] >> 4 if group % 2 else quants[byte] & 15
            if kind == "Q5_K":
                quant += 16 * (raw[16 + i % 32] >> group & 1)
            scale, low = k_scales(raw[4:16], group)
            values.append(half(raw[:2]) * np.float32(scale) * np.float32(quant) - half(raw[2:4]) * np.float32(low))
        return values
    values = []
    for i in range(256):
        part, run, lane = i // 128, i // 32 % 4, i % 32
        byte = raw[64 * part + 32 * (run % 2) + lane]
        quant = (byte & 15 if run < 2 else byte >> 4) + 16 * (raw[128 + 32 * part + lane] >> 2 * run & 3)
        scale = struct.unpack_from("b", raw, 192 + i // 16)[0]
        values.append(half(raw[208:]) * np.float32(scale) * np.float32(quant - 32))
    return values


def blocks_of(kind: str, rng: np.random.Generator, rows: int, across: int) -> Blocks:
    """Random bytes, with scales that are numbers."""
    dtype = DTYPES[kind]
    data = rng.integers(0, 256, rows * across * dtype.itemsize, dtype=np.uint8).view(dtype).reshape(rows, across)
    for name in ("scale", "min"):
        if name in (dtype.names or ()):
            data[name] = rng.normal(size=data.shape)
    return Blocks(kind, data)


@pytest.mark.parametrize("kind", QUANTISED)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 3), across=st.integers(1, 3))
def test_dequantising_is_what_a_plain_loop_gives(kind: str, seed: int, rows: int, across: int) -> None:
    blocks = blocks_of(kind, np.random.default_rng(seed), rows, across)
    expected = [[value for block in row for value in scalar(kind, block.tobytes())] for row in blocks.data]
    assert blocks.shape == (rows, across * block_size(kind))
    np.testing.assert_array_equal(dequantise(blocks), np.array(expected, np.float32))


@pytest.mark.parametrize("kind", QUANTISED)
def test_against_the_package_of_the_format(kind: str) -> None:
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    blocks = blocks_of(kind, np.random.default_rng(1), 5, 4)
    raw = blocks.data.view(np.uint8).reshape(5, -1)
    np.testing.assert_array_equal(dequantise(blocks), gguf.dequantize(raw, gguf.GGMLQuantizationType[kind]))


@pytest.mark.parametrize("kind", QUANTISED)
def test_affine_parts_are_small_whole_numbers_and_make_the_values(kind: str) -> None:
    blocks = blocks_of(kind, np.random.default_rng(2), 3, 2)
    quants, scale, low = affine(blocks)
    assert quants.dtype.itemsize == 1
    assert quants.shape[:-1] == scale.shape
    assert quants.shape[-2] * quants.shape[-1] == blocks.shape[-1]
    values = scale[..., None] * quants + (0 if low is None else low[..., None])
    np.testing.assert_array_equal(values.reshape(blocks.shape), dequantise(blocks))


def test_plain_numbers() -> None:
    values = np.array([[0.0, -1.5, 2.0**-14, 65504.0]], np.float32)
    assert dequantise(Blocks("F32", values)) is values
    np.testing.assert_array_equal(dequantise(Blocks("F16", values.astype("<f2"))), values)
    exact = np.array([[3.0, -0.5, 1.5 * 2.0**100, 0.0]], "<f4")  # the lower half of each is zero
    brain = (exact.view("<u4") >> 16).astype("<u2")
    np.testing.assert_array_equal(dequantise(Blocks("BF16", brain)), exact)
