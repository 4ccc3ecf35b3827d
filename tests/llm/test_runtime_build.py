"""The extension is built once, by whoever comes first, and its absence is explained."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nubes.llm.runtime import build
from nubes.llm.runtime.native import roofline


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(build.platformdirs, "user_cache_path", lambda name: tmp_path / name)
    build.library.cache_clear()
    yield tmp_path
    build.library.cache_clear()


def test_no_compiler_is_said(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(build.NoCompiler, match=r"no C compiler.*PyTorch"):
        build.library()


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = fresh / "cc"
    broken.write_text("#!/bin/sh\necho 'fatal error: no such machine' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(broken))
    with pytest.raises(build.NoCompiler, match="no such machine"):
        build.library()
    assert [path.name for path in fresh.rglob("*.so")] == []


@pytest.mark.skipif(not shutil.which("cc"), reason="no compiler")
def test_those_who_build_at_once_meet_one_whole_file(tmp_path: Path) -> None:
    code = (
        "import platformdirs, pathlib, sys; platformdirs.user_cache_path = lambda name: pathlib.Path(sys.argv[1]);"
        "from nubes.llm.runtime import build; build._SOURCES = ('pool.c',); print(bool(build.library().pool_open))"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [one.communicate()[0].strip() for one in both] == ["True", "True"]
    assert len(list((tmp_path / "runtime").iterdir())) == 1


@pytest.mark.skipif(not shutil.which("cc"), reason="no compiler")
def test_the_roofline_is_measured() -> None:
    found = roofline(threads=1, bytes=1 << 20)
    assert found["vectors"] in ("avx512", "avx2", "plain")
    assert min(found["read_bytes_per_s"], found["fp32_per_s"], found["int8_per_s"]) > 1e6
