"""What the compiled kernels are told of adapters, and one product of theirs by itself."""

from __future__ import annotations

import ctypes
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nubes.kernel.errors import NubesError, UsageError
from nubes.llm.lora.adapter import TARGETS, sizes
from nubes.llm.lora.segments import Segments
from nubes.llm.runtime.build import library
from nubes.llm.spec import Shape

ROW_WORK = 4.0  # what is done for a row without an adapter, in ranks

_I, _P = ctypes.c_int32, ctypes.c_void_p


class Lora(ctypes.Structure):
    """`lora` of lora.h. `keep`: what it points to."""

    _fields_ = (
        *((name, _I) for name in ("segments", "width", "half")),
        ("outputs", _I * len(TARGETS)),
        ("unused", _I),
        ("block_bytes", ctypes.c_int64),
        *((name, _P) for name in ("segment", "pool", "inner", "bounds")),
    )
    keep: Any


def adapted(shape: Shape, pool: NDArray[Any], segments: Segments, rows: int, threads: int) -> Lora:
    """The adapters of a step of so many rows, in the blocks of `pool` [blocks, ...]."""
    records, inner = segments.records, np.empty((rows, segments.width), np.float32)
    outputs = (_I * len(TARGETS))(*(outputs for _, outputs in sizes(shape).values()))
    bounds = shares(segments, rows, threads)
    made = Lora(
        len(records), segments.width, pool.dtype == np.float16, outputs, 0, pool[0].nbytes, records.ctypes.data,
        pool.ctypes.data, inner.ctypes.data, bounds.ctypes.data,
    )  # fmt: skip
    made.keep = (records, inner, bounds, segments)
    return made


def shares(segments: Segments, rows: int, threads: int) -> NDArray[np.int32]:
    """[threads + 1] where each thread's rows begin: a row's work is its adapter's rank, and a little more."""
    work = np.full(rows, ROW_WORK, np.float64)
    for first, count, placed in zip(segments.first, segments.rows, segments.placed, strict=True):
        work[first : first + count] += placed.rank
    middle = np.cumsum(work) - work / 2
    inner = np.searchsorted(middle, work.sum() * np.arange(1, threads) / threads)
    return np.concatenate(([0], inner, [rows])).astype(np.int32)


class Product:
    """SGMV by itself: y += scale * x A^T B^T for each segment of up to `rows` rows, on threads of its own.

    From: Punica: Multi-Tenant LoRA Serving (MLSys 2024). Threads share the rows,
    and not the long side of the first product as on GPUs: there is nothing to wait for between the two.
    """

    def __init__(self, shape: Shape, pool: NDArray[Any], segments: Segments, rows: int, threads: int = 2) -> None:
        segments.check(rows, len(pool))
        self._library = library()
        self._library.pool_open.argtypes, self._library.pool_open.restype = (ctypes.c_int,), _P
        self._library.pool_close.argtypes, self._library.pool_close.restype = (_P,), None
        c_int = ctypes.c_int
        self._library.nubes_lora.argtypes = (_P, _P, c_int, c_int, c_int, _P, _P)
        self._shape, self._rows = shape, rows
        self._lora = adapted(shape, pool, segments, rows, threads)
        self._threads = self._library.pool_open(threads)

    def __enter__(self) -> Product:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._library.pool_close(self._threads)

    def run(self, layer: int, matrix: int, x: NDArray[np.float32], y: NDArray[np.float32]) -> None:
        """`x` [rows, inputs] and `y` [rows, outputs] of `TARGETS[matrix]`, float32 and contiguous; y is changed."""
        inputs, outputs = sizes(self._shape)[TARGETS[matrix]]
        for array, width in ((x, inputs), (y, outputs)):
            if array.shape != (self._rows, width) or array.dtype != np.float32 or not array.flags.c_contiguous:
                raise UsageError(
                    f"x and y are contiguous float32 arrays of {self._rows} rows, {inputs} and {outputs} wide."
                )
        lora = ctypes.addressof(self._lora)
        if self._library.nubes_lora(self._threads, lora, layer, matrix, inputs, x.ctypes.data, y.ctypes.data):
            raise NubesError("No thread is to be had.")
