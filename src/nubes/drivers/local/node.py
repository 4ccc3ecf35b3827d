"""A parent in the process tree: imports once, then forks instances and further parents on request.

Run as `python -m nubes.drivers.local.node` for the root of a tree; other parents are forks of it. A parent runs no
user call,
starts no thread and, while parked, only waits on its control socket.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

import cloudpickle  # noqa: F401  (so that every fork has it)
import msgspec

from nubes.drivers.local import instance, limits, loading, payload, wire  # noqa: F401
from nubes.functions.spec import FunctionSpec

_decode_spec = msgspec.msgpack.Decoder(FunctionSpec).decode


class Parked(Exception):
    """Leaves the parent's loop in a freshly forked child, with what the child is to do."""

    def __init__(self, then: Any) -> None:
        self.then = then


def main() -> None:
    """The root of a tree: `argv` holds the descriptor number of its control socket, and its lifeline's path."""
    instance.lead_group(sys.argv[2])
    sock = socket.socket(fileno=int(sys.argv[1]))
    data, _ = wire.recv_with_fds(sock)
    if data:
        _, imports, spec, prime = wire.unbody(data)
        grow(sock, tuple(imports), spec, prime)


def grow(control: socket.socket, imports: tuple[str, ...], spec: bytes, prime: bool) -> None:
    """Loads what this parent is for, parks, and serves; returns only by becoming somebody else's child."""
    while True:
        started = time.monotonic()
        try:
            loading.import_packages(imports)
            own = _decode_spec(spec) if spec else None
            if own is not None:
                instance.preload(own)
            if prime:
                instance.prime()
            _check_threads()
        except BaseException as error:
            control.send(wire.body(wire.FAILED_TO_GROW, f"{type(error).__name__}: {error}"))
            os._exit(1)
        gc.collect()
        gc.freeze()
        gc.disable()
        control.send(wire.body(wire.PARKED, os.getpid(), time.monotonic() - started, _private_bytes()))
        try:
            _serve(control, own)
        except Parked as parked:
            if parked.then is None:
                os._exit(0)
            control, imports, spec, prime = parked.then


def _check_threads() -> None:
    if threading.active_count() > 1 or (len(os.listdir("/proc/self/task")) > 1 and not _only_blas_threads()):
        names = ", ".join(thread.name for thread in threading.enumerate()[1:]) or "a native library's"
        raise RuntimeError(f"threads are running ({names}), which a fork would not survive")


def _only_blas_threads() -> bool:
    """OpenBLAS and OpenMP stop their pools at a fork and start them anew in the child; Python's threads cannot."""
    return threading.active_count() == 1


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


def _serve(control: socket.socket, own: FunctionSpec | None) -> None:
    def reap(*_: Any) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            _send(control, wire.body(wire.EXITED, pid, os.waitstatus_to_exitcode(status)))

    signal.signal(signal.SIGCHLD, reap)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        data, fds = wire.recv_with_fds(control)
        if not data:
            raise Parked(None)
        frame = wire.unbody(data)
        if frame[0] == wire.FORK:
            _fork_instance(control, frame, fds, own)
        elif frame[0] == wire.GROW:
            _fork_parent(control, frame, fds)


def _fork_instance(control: socket.socket, frame: list[Any], fds: list[int], own: FunctionSpec | None) -> None:
    _, id, packed, setting = frame
    pid = _fork()
    if pid == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        control.close()
        gc.enable()
        spec = _decode_spec(packed) if packed or own is None else own
        instance.run(socket.socket(fileno=fds[0]), spec, setting)
        os._exit(0)
    os.close(fds[0])
    _send(control, wire.body(wire.FORKED, id, pid))


def _fork_parent(control: socket.socket, frame: list[Any], fds: list[int]) -> None:
    _, imports, spec, prime = frame
    pid = _fork()
    if pid == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        control.close()
        raise Parked((socket.socket(fileno=fds[0]), tuple(imports), spec, prime))
    os.close(fds[0])
    _send(control, wire.body(wire.FORKED, 0, pid))


def _fork() -> int:
    for attempt in range(5):
        try:
            return os.fork()
        except BlockingIOError:  # the machine is out of processes for the moment
            time.sleep(0.01 * 2**attempt)
    return os.fork()


def _send(control: socket.socket, data: bytes) -> None:
    try:
        control.send(data)
    except OSError:
        os._exit(0)  # nobody is left to serve


if __name__ == "__main__":
    main()
