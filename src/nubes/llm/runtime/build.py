"""Compiles the extension at first use, with the compiler and for the CPU that are there."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import platformdirs

from nubes.kernel.errors import Unavailable

_HERE = Path(__file__).parent
_SOURCES = ("runtime.c", "lora.c", "pack.c", "measure.c", "pool.c")
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-fno-math-errno", "-Wno-psabi", "-pthread")
_MACHINES = (("-march=native",), ("-mcpu=native",), ())  # not every compiler knows every machine


class NoCompiler(Unavailable):
    """The extension cannot be built here; the PyTorch runtime does without."""


@functools.cache
def library(plain: bool = False) -> ctypes.CDLL:
    """The extension, loaded; `plain`: without intrinsics. Builds it unless that was done before: some seconds.

    Raises `NoCompiler`.
    """
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        raise NoCompiler("There is no C compiler.", "Install gcc or clang, or choose the PyTorch runtime.")
    flags = (*_FLAGS, "-DNUBES_PLAIN") if plain else _FLAGS
    target = platformdirs.user_cache_path("nubes") / "runtime" / f"{_fingerprint(compiler, flags)}.so"
    if not target.exists():
        _compile(compiler, flags, target)
    try:
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise NoCompiler(
            f"The extension does not load: {error}.", f"Delete {target}, or choose the PyTorch runtime."
        ) from None


def _fingerprint(compiler: str, flags: tuple[str, ...]) -> str:
    """Of all that the result depends on: sources, flags, compiler and CPU."""
    digest = hashlib.sha256(repr((flags, _MACHINES, platform.machine(), _cpu())).encode())
    digest.update(subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout)
    for path in sorted(_HERE.glob("*.[ch]")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:24]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _compile(compiler: str, flags: tuple[str, ...], target: Path) -> None:
    """Into a file of its own first, so that whoever builds at the same time meets a whole one or none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, made = tempfile.mkstemp(suffix=".so", dir=target.parent)
    os.close(handle)
    sources = [str(_HERE / name) for name in _SOURCES]
    try:
        for native in (["-march=native"], ["-mcpu=native"], []):  # not every compiler knows every machine
            done = subprocess.run(
                [compiler, *flags, *native, *sources, "-o", made, "-lm"], capture_output=True, text=True
            )
            if done.returncode == 0:
                os.replace(made, target)
                return
        reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
        raise NoCompiler(f"{compiler} cannot build the extension: {reason}.", "Choose the PyTorch runtime.")
    finally:
        Path(made).unlink(missing_ok=True)
