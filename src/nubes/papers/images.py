"""Process images on disk: a process that is ready to answer, written down and restored with CRIU."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.path.insert(0, sys.argv[1])
made = __import__(sys.argv[2])
open("ready", "w").close()
signal.sigwait({signal.SIGUSR1})
with open("answer.new", "w") as file:
    file.write(str(made.first.local()))
os.rename("answer.new", "answer")
"""
_NOWHERE = subprocess.DEVNULL


class NoImages(Exception):
    """Why this machine makes no process images."""


def restored(folder: Path, code: Path, module: str, rounds: int) -> list[float]:
    """Seconds from the wish for `module.first` to its answer, each time from the same image. Raises `NoImages`."""
    criu = shutil.which("criu")
    if criu is None:
        raise NoImages("CRIU is not installed")
    folder.mkdir(parents=True)
    images = folder / "images"
    images.mkdir()
    argv = [sys.executable, "-c", PROGRAM, str(code), module]
    process = subprocess.Popen(
        argv, cwd=folder, start_new_session=True, stdin=_NOWHERE, stdout=_NOWHERE, stderr=_NOWHERE
    )
    _await(folder / "ready")
    try:
        _run(criu, "dump", "-t", str(process.pid), "-D", str(images))
    except NoImages:
        process.kill()
        process.wait()
        raise
    process.wait()
    return [_restore(criu, folder, images, process.pid) for _ in range(rounds)]


def _restore(criu: str, folder: Path, images: Path, pid: int) -> float:
    answer = folder / "answer"
    begun = time.perf_counter()
    # As a sibling of CRIU it is a child of ours, so that its end can be awaited and its id is free for the next.
    _run(criu, "restore", "-S", "-d", "-D", str(images))
    os.kill(pid, signal.SIGUSR1)
    _await(answer)
    took = time.perf_counter() - begun
    os.waitpid(pid, 0)
    answer.unlink()
    return took


def _await(path: Path, within_s: float = 60.0) -> None:
    end = time.monotonic() + within_s
    while not path.exists():
        if time.monotonic() > end:
            raise NoImages(f"nothing came of it within {within_s:g} s")
        time.sleep(0.0002)


def _run(*command: str) -> None:
    done = subprocess.run(command, stdin=_NOWHERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        errors = [line.strip() for line in done.stdout.splitlines() if "Error" in line]
        raise NoImages(f"criu {command[1]} failed: {'; '.join(errors[-3:]) or 'it gave no reason'}")
