"""The process that holds the weights, and forks engines that share them: each is there after some tens of milliseconds.

It starts no thread, so that its forks are whole. It ends when the router is gone, and its engines do so by themselves.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from nubes.drivers.local import wire
from nubes.drivers.local.forking import fork

if TYPE_CHECKING:
    from nubes.llm.engine.opening import Loaded


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What the engines of a fleet are made of. `blocks` of KV for each, or as many as `kv_bytes` hold."""

    model: str
    format: str = "int8"
    threads: int = 1
    blocks: int = 0
    kv_bytes: int = 0
    adapters: dict[str, str] = {}


class Nursery:
    """The router's end of it. With `loaded` it is first forked from this process, which must have no other thread."""

    def __init__(self, plan: Plan, loaded: Loaded | None = None) -> None:
        self._plan = plan
        self._loaded = loaded
        self._control: socket.socket | None = None
        self._reap: Callable[[], object] = lambda: None

    def bear(self, config: bytes, sock: socket.socket) -> None:
        """Forks an engine that has the other end of `sock`. If that ends without a word, there is none."""
        if self._control is not None:
            try:
                wire.send_with_fds(self._control, config, (sock.fileno(),))
                return
            except OSError:  # the nursery was killed: another one loads the model anew
                self.close()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            if self._loaded is None:
                self._start(theirs)
            else:
                self._fork(theirs, self._loaded)
        self._loaded = None  # by the next time there may be threads
        wire.send_with_fds(self._control, config, (sock.fileno(),))

    def _start(self, theirs: socket.socket) -> None:
        command = [sys.executable, "-m", __name__, msgspec.json.encode(self._plan).decode(), str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        self._reap = process.wait

    def _fork(self, theirs: socket.socket, loaded: Loaded) -> None:
        def live() -> None:
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # what stands there may talk over a socket
            control = socket.socket(fileno=os.dup2(theirs.detach(), 3))
            os.closerange(4, os.sysconf("SC_OPEN_MAX"))
            _nurse(control, loaded)

        pid = _child(live)
        self._reap = lambda: os.waitpid(pid, 0)

    def close(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
            self._reap()


def _child(live: Callable[[], None]) -> int:
    """Forks; the child does only this, and returns nowhere."""
    pid = fork()
    if pid:
        return pid
    try:
        live()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _nurse(control: socket.socket, loaded: Loaded) -> None:
    """Forks engines until nobody asks for any more."""
    from nubes.drivers.local import llm_member

    Path("/proc/self/comm").write_text("nubes-weights")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asked us decides when to end
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for children
    gc.freeze()

    def live() -> None:
        control.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        config = msgspec.json.decode(data, type=llm_member.Config)
        sock = socket.socket(fileno=fds[0])
        llm_member.live(config, loaded.runtime, loaded.checkpoint.tokens, loaded.store, sock)

    while True:
        data, fds = wire.recv_with_fds(control)
        if not data:
            return
        _child(live)
        os.close(fds[0])


def load(plan: Plan) -> Loaded:
    """Raises what loading the model raises."""
    from nubes.llm.checkpoint import load
    from nubes.llm.engine.opening import equipped, open_runtime
    from nubes.llm.runtime.native import NativeRuntime

    checkpoint = load(plan.model)
    runtime: Any
    if plan.blocks:
        runtime = NativeRuntime(checkpoint, plan.format, plan.blocks, threads=plan.threads)  # type: ignore[arg-type]
    else:
        runtime = open_runtime(checkpoint, plan.format, "cpu", plan.threads, plan.kv_bytes)
    return equipped(checkpoint, runtime, plan.adapters)


def main() -> None:
    loaded = load(msgspec.json.decode(sys.argv[1], type=Plan))
    loaded.checkpoint.tokens.encode("Hello")
    _nurse(socket.socket(fileno=int(sys.argv[2])), loaded)


if __name__ == "__main__":
    main()
