"""Large arguments and results, for the tests."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import nubes

app = nubes.App("data")
_kept: list[Any] = []


@app.function(max_instances=1)
def shape_and_sum(array: Any) -> tuple[tuple[int, ...], float]:
    return array.shape, float(array.sum())


@app.function(max_instances=1)
def echo(value: Any) -> Any:
    return value


@app.function()
async def echo_later(value: Any) -> Any:
    return value


def file_at(address: int) -> str:
    """What is mapped at an address of this process; empty for memory of its own."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, *rest = line.split(maxsplit=5)
            first, last = (int(edge, 16) for edge in span.split("-"))
            if first <= address < last:
                return rest[4].strip() if len(rest) > 4 else ""
    return ""


@app.function(max_instances=1)
def where_an_array_lies(array: Any) -> tuple[str, Any]:
    return file_at(array.ctypes.data), array


@app.function(max_instances=1)
def where_a_table_lies(table: Any) -> tuple[set[str], Any]:
    return files_of(table), table.append_column("doubled", [[2 * x for x in table["x"].to_pylist()]])


def files_of(table: Any) -> set[str]:
    """The files that an Arrow table's columns are mapped from."""
    buffers = [b for column in table.columns for chunk in column.chunks for b in chunk.buffers() if b is not None]
    return {file_at(buffer.address) for buffer in buffers}


@app.function(max_instances=1)
def keep(array: Any) -> float:
    """Holds on to its argument, and says what the one it held before looks like now."""
    _kept.append(array[:16])
    return float(_kept[0].sum())


@app.function(max_instances=1)
def write_into(array: Any) -> float:
    array[:] = 7
    return float(array.sum())


@app.function()
def make(megabytes: int) -> Any:
    import numpy as np

    return np.full(megabytes << 17, 3.0)


@app.function()
def make_many(n: int) -> Iterator[Any]:
    import numpy as np

    for number in range(n):
        yield np.full(1 << 17, float(number))


@app.function(max_instances=1)
def resident_growth(array: Any) -> tuple[int, int]:
    """Bytes of private memory that reading an argument cost, and its size."""
    before = _private_bytes()
    total = array.sum()
    assert total is not None
    return _private_bytes() - before, array.nbytes


@app.function()
def fail_with(array: Any) -> None:
    raise ValueError(array.nbytes)


@app.function()
def die_with(array: Any) -> None:
    os._exit(1)


@app.function()
def sleep_with(array: Any) -> None:
    time.sleep(30)


def _private_bytes() -> int:
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Private_"))
