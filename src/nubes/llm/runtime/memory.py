"""Memory for what is read over and over: in huge pages where there are any, shared with forks until written to."""

from __future__ import annotations

import math
import mmap
import os
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_HUGE = 2 << 20


def mapped(path: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An array in a file that several processes map; made larger if it is too small."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    with open(path, "r+b") as file:
        if os.fstat(file.fileno()).st_size < size:
            file.truncate(size)
        pages = mmap.mmap(file.fileno(), size)
    return np.frombuffer(pages, dtype).reshape(shape)


def zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An array of zeros; pages are taken when they are first touched."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    pages = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = np.frombuffer(pages, np.uint8)
    skip = -whole.ctypes.data % _HUGE
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return whole[skip : skip + size].view(dtype).reshape(shape)
