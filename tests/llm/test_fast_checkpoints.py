"""The fast format: what is loaded is what was saved, from every tier, and what is damaged is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nubes.llm.checkpoint import load
from nubes.llm.checkpoint.fast import ABOUT, INDEX, convert, index_of, save, sizes_of
from nubes.llm.checkpoint.pool import Pool
from nubes.llm.errors import BrokenModel
from tests.llm.checkpoint_files import gguf, gguf_tensors, header


def tensors(seed: int = 0, scale: int = 1) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {
        f"t{n}": draw.random((draw.integers(1, 90 * scale), draw.integers(1, 70))).astype(dtype)
        for n, dtype in enumerate([np.float32, np.float16, np.float32, np.float64, np.float32])
    }
    made["scalar"] = np.array([3.5], np.float32)
    made["tied"] = made["t0"]
    return made


@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize("threads", [1, 4])
def test_all_comes_back(tmp_path: Path, partitions: int, threads: int) -> None:
    given = tensors(scale=20)
    written = save(given, tmp_path / "m", partitions)
    assert written == sum(tensor.nbytes for name, tensor in given.items() if name != "tied")
    assert len(sizes_of(tmp_path / "m")) in {1: (1,), 3: (2, 3)}[partitions]
    pool = Pool(1 << 26, chunk_bytes=8192, threads=threads)
    loaded = pool.load(tmp_path / "m").tensors
    assert list(loaded) == list(given)
    for name, tensor in given.items():
        assert loaded[name].dtype == tensor.dtype
        np.testing.assert_array_equal(loaded[name], tensor)
    assert loaded["tied"].ctypes.data == loaded["t0"].ctypes.data
    assert all(tensor.ctypes.data % 64 == 0 for tensor in loaded.values())
    again = pool.load(tmp_path / "m").tensors
    assert again["t0"].ctypes.data == loaded["t0"].ctypes.data, "it was in memory"


def test_remote_fills_the_disk(tmp_path: Path) -> None:
    given = tensors(scale=30)
    save(given, tmp_path / "far", 2)
    pool = Pool(0, chunk_bytes=4096)
    loaded = pool.load(tmp_path / "near", remote=tmp_path / "far").tensors
    near = pool.load(tmp_path / "near").tensors
    for name, tensor in given.items():
        np.testing.assert_array_equal(loaded[name], tensor)
        np.testing.assert_array_equal(near[name], tensor)
    assert not pool.holds(tmp_path / "near"), "there was no room for it"


def test_the_least_recently_used_goes(tmp_path: Path) -> None:
    for name in "abc":
        save(tensors(), tmp_path / name)
    size = sum(sizes_of(tmp_path / "a").values())
    pool = Pool(2 * size)
    for name in "abac":
        pool.load(tmp_path / name).close()
    assert [pool.holds(tmp_path / name) for name in "abc"] == [True, False, True]
    assert pool.used_bytes == 2 * size
    with pool.load(tmp_path / "a") as a, pool.load(tmp_path / "c") as c, pool.load(tmp_path / "b") as b:
        for name, tensor in tensors().items():
            for loaded in (a, b, c):
                np.testing.assert_array_equal(loaded.tensors[name], tensor)
        assert not pool.holds(tmp_path / "b"), "all memory is in use"
    assert pool.estimate_s(tmp_path / "a", size) == 0.0
    assert pool.estimate_s(tmp_path / "b", size, size) == 2 * pool.estimate_s(tmp_path / "b", size) > 0.0


def test_damage_is_told(tmp_path: Path) -> None:
    save(tensors(), tmp_path / "m")
    data = tmp_path / "m" / "tensor.data_0"
    whole = data.read_bytes()
    data.write_bytes(whole[:4096])
    with pytest.raises(BrokenModel):
        Pool(1 << 24).load(tmp_path / "m")
    data.write_bytes(whole[:-100])
    with pytest.raises(BrokenModel):
        Pool(1 << 24).load(tmp_path / "m")
    data.write_bytes(whole)
    (tmp_path / "m" / INDEX).write_text("{}x")
    with pytest.raises(BrokenModel):
        index_of(tmp_path / "m")
    (tmp_path / "m" / INDEX).unlink()
    with pytest.raises(BrokenModel):
        index_of(tmp_path / "m")


def test_a_converted_model_is_opened_like_any_other(tmp_path: Path) -> None:
    gguf(tmp_path / "given.gguf", header(), gguf_tensors())
    given = load(tmp_path / "given.gguf")
    convert(given, tmp_path / "fast")
    made = load(tmp_path / "fast")
    assert made.shape == given.shape
    for name in given.names:
        np.testing.assert_array_equal(made.tensor(name), given.tensor(name))
    assert made.tokens.encode("hello") == given.tokens.encode("hello")
    (tmp_path / "fast" / ABOUT).write_text("{}")
    with pytest.raises(BrokenModel, match="Convert the model again"):
        load(tmp_path / "fast")
