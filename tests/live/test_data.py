"""Large buffers travel through shared memory, are never changed under a reader, and leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import data_app as app
import numpy as np
import pytest
from real import until

import nubes
from nubes import client
from nubes.drivers.local import objects

MEGABYTE = 1 << 20
STATES = ("folder", "servers")
SLOW_STATES = ("ray",)


@pytest.fixture(scope="module", autouse=True)
def running(plane: Path) -> Iterator[None]:
    with app.app.run():
        yield


def segments() -> set[str]:
    return {path.name for path in Path(client.connect().shared).glob("seg-*")}


def test_arrays_and_bytes_go_both_ways() -> None:
    array = np.arange(2 * MEGABYTE, dtype=np.float64).reshape(2, -1)
    assert app.shape_and_sum.remote(array) == (array.shape, array.sum())
    back = app.echo.remote({"a": array, "b": [array[0]], "raw": b"x" * MEGABYTE, "small": 1})
    np.testing.assert_array_equal(back["a"], array)
    np.testing.assert_array_equal(back["b"][0], array[0])
    assert back["raw"] == b"x" * MEGABYTE
    assert back["small"] == 1
    back["a"][0, 0] = 9  # what arrives is the receiver's own
    np.testing.assert_array_equal(app.echo.remote(array.T), array.T)
    np.testing.assert_array_equal(app.echo.remote(array[:, ::2]), array[:, ::2])
    assert app.echo.remote(bytearray(b"y" * MEGABYTE)) == bytearray(b"y" * MEGABYTE)
    assert app.echo.remote(np.empty(0)).size == 0


def test_nothing_is_left_of_what_went_from_step_to_step() -> None:
    before = segments()
    assert app.make.then(app.shape_and_sum).remote(4) == ((4 << 17,), float(12 << 17))
    assert list(app.make.then(app.echo, app.shape_and_sum).map([2] * 5)) == [((2 << 17,), float(6 << 17))] * 5
    until(lambda: segments() <= before)


def test_anything_that_pickles_out_of_band_travels_so() -> None:
    """Arrow and pandas hand out their buffers through the same protocol."""
    frame = pytest.importorskip("pandas").DataFrame({"x": np.arange(MEGABYTE, dtype=float), "y": np.arange(MEGABYTE)})
    before = segments()
    assert app.echo.remote(frame).equals(frame)
    assert len(segments() - before) <= 1

    buffers: list[Any] = []
    pickle.dumps(frame, 5, buffer_callback=buffers.append)
    assert buffers


def test_arrays_lie_in_shared_memory_on_both_sides(one_machine: None) -> None:
    there, array = app.where_an_array_lies.remote(np.arange(MEGABYTE, dtype=np.int64))
    shared = f"{client.connect().shared}/seg-"
    assert there.startswith(shared)
    assert app.file_at(array.ctypes.data).startswith(shared)


def test_arrow_tables_travel_so_too() -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    table = pyarrow.table({"x": np.arange(MEGABYTE // 2), "y": np.random.default_rng(0).random(MEGABYTE // 2)})
    assert table.nbytes == 8 * MEGABYTE
    before = segments()
    there, back = app.where_a_table_lies.remote(table)
    shared = f"{client.connect().shared}/seg-"
    assert back.select(["x", "y"]).equals(table)
    assert back["doubled"][-1].as_py() == 2 * (MEGABYTE // 2 - 1)
    for files in (there, app.files_of(back)):
        assert len(files) == 1
        assert all(file.startswith(shared) for file in files)
    assert len(segments() - before) <= 1  # that of the argument, which is used again


def test_a_segment_is_used_again_for_the_next_call() -> None:
    app.shape_and_sum.remote(np.ones(MEGABYTE))
    before = segments()
    for number in range(5):
        assert app.shape_and_sum.remote(np.full(MEGABYTE, float(number)))[1] == number * MEGABYTE
    assert segments() == before


def test_an_argument_that_a_function_keeps_never_changes() -> None:
    before = segments()
    for number in range(1, 5):
        assert app.keep.remote(np.full(MEGABYTE, float(number))) == 16.0  # the first one it was given, of ones
    assert segments() <= before  # and its pages are gone when the function lets go: nobody else holds them


def test_what_a_function_writes_stays_with_it() -> None:
    array = np.ones(MEGABYTE)
    assert app.write_into.remote(array) == 7 * MEGABYTE
    assert array.sum() == MEGABYTE
    assert app.shape_and_sum.remote(array)[1] == MEGABYTE


def test_reading_an_argument_copies_nothing(one_machine: None) -> None:
    array = np.ones(4 * MEGABYTE)
    app.resident_growth.remote(array)
    grown, size = app.resident_growth.remote(array)
    assert size == array.nbytes
    assert grown < size / 4


def test_results_leave_no_segment_behind() -> None:
    before = segments()
    assert app.make.remote(4).sum() == 3.0 * (4 << 17)
    assert [array[0] for array in app.make_many.remote(3)] == [0.0, 1.0, 2.0]
    assert sum(array.sum() for array in app.make.map([1] * 8)) == 8 * 3.0 * (1 << 17)
    assert until(lambda: segments() <= before)


def test_maps_and_async_calls_with_large_arguments() -> None:
    arrays = [np.full(MEGABYTE // 4, float(n)) for n in range(12)]
    assert [s for _, s in app.shape_and_sum.map(arrays)] == [a.sum() for a in arrays]

    async def call() -> list[Any]:
        return [s async for _, s in app.shape_and_sum.map.aio(arrays)]

    assert asyncio.run(call()) == [a.sum() for a in arrays]


def test_a_spawned_calls_large_argument_and_result_are_kept(plane: Path) -> None:
    call = app.echo.spawn(np.ones(MEGABYTE))
    assert call.get().sum() == MEGABYTE
    assert nubes.FunctionCall.from_id(call.object_id).get().sum() == MEGABYTE  # as often as one likes

    async def later() -> Any:
        return await (await app.echo_later.spawn.aio(np.full(MEGABYTE, 2.0))).get.aio()

    assert asyncio.run(later()).sum() == 2 * MEGABYTE
    if os.environ.get("NUBES_OBJECTS"):
        assert sum(name.startswith("obj-") for name, _ in objects.listed(os.environ["NUBES_OBJECTS"])) == 4
        assert not list((plane / "objects").iterdir())
    else:
        assert len(list((plane / "objects").iterdir())) == 4


def test_failures_leave_no_segment_behind() -> None:
    app.shape_and_sum.remote(np.ones(MEGABYTE))
    before = segments()
    array = np.ones(MEGABYTE)
    with pytest.raises(ValueError, match=str(array.nbytes)):
        app.fail_with.remote(array)
    with pytest.raises(nubes.InstanceDied):
        app.die_with.remote(array)
    call = asyncio.run(_cancelled(array))
    assert call
    assert until(lambda: len(segments()) <= len(before) + 1)


async def _cancelled(array: Any) -> bool:
    task = asyncio.create_task(app.sleep_with.remote.aio(array))
    await asyncio.sleep(0.3)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return True
    return False


def test_a_client_that_is_killed_leaves_no_segment_behind() -> None:
    from real import script

    process = script(
        "import data_app as app, numpy as np, os, threading, time\n"
        "threading.Timer(1.0, lambda: os.kill(os.getpid(), 9)).start()\n"
        "app.app.deployment.attach()\n"
        "app.sleep_with.remote(np.ones(1 << 20))\n"
    )
    assert until(lambda: [name for name in segments() if f"-{process.pid}-" in name])
    process.communicate(timeout=20)
    until(lambda: not [name for name in segments() if f"-{process.pid}-" in name])


def test_a_full_shared_memory_is_an_error_not_a_crash() -> None:
    size = os.statvfs(client.connect().shared)
    total = size.f_blocks * size.f_frsize
    segment = client.connect().arguments.segments
    begun = time.monotonic()
    with pytest.raises(OSError, match="No space left"):
        segment._take(total + (1 << 30))
    assert time.monotonic() - begun < 20
    assert app.shape_and_sum.remote(np.ones(10))[1] == 10
