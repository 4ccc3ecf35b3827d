"""Memory for what is read over and over: in huge pages where there are any, shared with forks until written to."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_HUGE = 2 << 20
_MAP_FIXED = 0x10


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


def share(array: NDArray[Any], path: str) -> None:
    """Puts memory that `zeros` gave into a file that several processes map: the file's content is the array's then."""
    size = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    remap = ctypes.CDLL(None, use_errno=True).mmap
    remap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    remap.restype = ctypes.c_void_p
    with open(path, "r+b") as file:
        if os.fstat(file.fileno()).st_size < size:
            file.truncate(size)
        flags = mmap.MAP_SHARED | _MAP_FIXED
        at = remap(array.ctypes.data, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, file.fileno(), 0)
    if at != array.ctypes.data:
        raise OSError(ctypes.get_errno(), "memory cannot be shared", path)
