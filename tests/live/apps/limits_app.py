"""Functions that behave badly, for the tests. Each does bounded harm."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import time

import nubes

app = nubes.App("limits")


@app.function()
def bystander(seconds: float = 0.0) -> int:
    time.sleep(seconds)
    return os.getpid()


@app.function(memory=("64MiB", "128MiB"))
def hold_memory(megabytes: int) -> int:
    held = bytearray(megabytes << 20)
    for page in range(0, len(held), 4096):
        held[page] = 1
    return len(held)


@app.function(cpu=(0.1, 0.2))
def spin(wall_s: float) -> float:
    """Seconds of CPU had in `wall_s` seconds of trying."""
    before = time.process_time()
    end = time.monotonic() + wall_s
    while time.monotonic() < end:
        pass
    return time.process_time() - before


@app.function(timeout=20)
def fork_bomb() -> tuple[int, str]:
    """Forks sleeping children until the machine says no; at most 2000."""
    for count in range(2000):
        try:
            pid = os.fork()
        except OSError as error:
            return count, str(error)
        if pid == 0:
            time.sleep(30)
            os._exit(0)
    return 2000, "nothing stopped it"


@app.function()
def leave_a_child_behind(pids: nubes.Queue, leaves_its_group: bool, crash: bool) -> None:
    """Ends, one way or the other, while a child of it sleeps."""
    pid = os.fork()
    if pid == 0:
        if leaves_its_group:
            os.setsid()
        time.sleep(600)
        os._exit(0)
    pids.put(pid)
    if crash:
        os._exit(1)


@app.function()
def exit_now(code: int) -> None:
    os._exit(code)


@app.function()
def segfault() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(0)


@app.function()
def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.function()
def open_many() -> str:
    """Leaks file descriptors until there are none."""
    held = []
    try:
        while len(held) < 100_000:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        for fd in held:
            os.close(fd)
        return str(error)
    for fd in held:
        os.close(fd)
    return "no limit"
