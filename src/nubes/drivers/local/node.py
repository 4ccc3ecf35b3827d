"""A parent in the process tree: imports once, then forks instances and further parents on request.

Run as `python -m nubes.drivers.local.node` for the root of a tree; other parents are forks of it. A parent runs no
user call,
starts no thread and, while parked, only waits on its control socket.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import sys
import threading
import time
from typing import Any

import cloudpickle  # noqa: F401  (so that every fork has it)
import msgspec

from nubes.drivers.local import forking, hugepages, lifeline, loading, wire
from nubes.drivers.local.instance import Instance, rehearse
from nubes.drivers.local.setting import Birth, Setting
from nubes.functions.spec import FunctionSpec

_decode_spec = msgspec.msgpack.Decoder(FunctionSpec).decode
_decode_setting = msgspec.msgpack.Decoder(Setting).decode

_NEWS = 16  # so many starts at once are reported together


class Parked(Exception):
    """Leaves the parent's loop in a freshly forked child, with what the child is to do."""

    def __init__(self, then: Any) -> None:
        self.then = then


def main() -> None:
    """The root of a tree: `argv` holds the descriptor number of its control socket, and its lifeline's path."""
    held = sys.argv[2]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sock = socket.socket(fileno=int(sys.argv[1]))
    data, _ = wire.recv_with_fds(sock)
    if data:
        grow(sock, wire.unbody(data)[1:], held)


def grow(control: socket.socket, task: list[Any], held: str) -> None:
    """Loads what this parent is for, parks, and serves; returns only by becoming somebody else's child."""
    while True:
        started = time.monotonic()
        lifeline.hold(held)
        try:
            imports, spec, setting, prime = task
            loading.import_packages(tuple(imports))
            own = None
            if spec:
                own = Instance(_decode_spec(spec), _decode_setting(setting))
                own.prepare()
                own.share()
            if prime:
                rehearse()
            _check_threads()
        except BaseException as error:
            control.send(wire.body(wire.FAILED_TO_GROW, f"{type(error).__name__}: {error}"))
            os._exit(1)
        forking.without_handlers()
        gc.collect()
        gc.freeze()
        gc.disable()
        hugepages.collapse()
        control.send(wire.body(wire.PARKED, os.getpid(), time.monotonic() - started, _private_bytes()))
        try:
            _serve(control, own)
        except Parked as parked:
            if parked.then is None:
                os._exit(0)
            control, task = parked.then


def _check_threads() -> None:
    """Python's threads do not survive a fork. (OpenBLAS and OpenMP end theirs before one, and start them anew.)"""
    if threading.active_count() > 1:
        names = ", ".join(thread.name for thread in threading.enumerate()[1:])
        raise RuntimeError(f"threads are running ({names}), which a fork would not survive")


def _private_bytes() -> int:
    total = 0
    try:
        with open("/proc/self/smaps_rollup") as file:
            for line in file:
                if line.startswith(("Private_Dirty:", "Private_Clean:")):
                    total += int(line.split()[1]) * 1024
    except OSError:
        pass
    return total


def _serve(control: socket.socket, own: Instance | None) -> None:
    """Forks on request, and reports what became of its children when asked, or when there is nothing else to do."""
    news: list[tuple[int, int, int]] = []
    while True:
        try:
            data, fds = wire.recv_with_fds(control, wait=not news)
        except BlockingIOError:
            data, fds = b"", ()
        else:
            if not data:
                raise Parked(None)
            frame = wire.unbody(data)
            if frame[0] == wire.FORK:
                news.append((wire.FORKED, frame[1], _fork_instance(control, frame, fds, own)))
            elif frame[0] == wire.GROW:
                _fork_parent(control, frame, fds[0])
        _reap(news)
        if news and (not data or len(news) >= _NEWS):
            try:
                control.send(wire.body(wire.NEWS, news))
            except OSError:
                os._exit(0)  # nobody is left to serve
            news.clear()


def _reap(news: list[tuple[int, int, int]]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        news.append((wire.EXITED, pid, os.waitstatus_to_exitcode(status)))


def _fork_instance(control: socket.socket, frame: list[Any], fds: tuple[int, ...], own: Instance | None) -> int:
    pid = forking.fork()
    if pid == 0:
        _, _, birth, spec, setting = frame
        fd, line = fds
        lifeline.lead(line)
        control.close()
        gc.enable()
        me = Instance(_decode_spec(spec), _decode_setting(setting)) if spec or own is None else own
        me.live(wire.Stream(fd), Birth(*birth))
        os._exit(0)
    for fd in fds:
        os.close(fd)
    return pid


def _fork_parent(control: socket.socket, frame: list[Any], fd: int) -> None:
    if forking.fork() == 0:
        control.close()
        raise Parked((socket.socket(fileno=fd), frame[1:]))
    os.close(fd)


if __name__ == "__main__":
    main()
