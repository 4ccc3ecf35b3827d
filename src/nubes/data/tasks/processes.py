"""Worker processes of a pool: starting and ending them, and frames to and from them, all in one thread."""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from nubes.drivers.local import wire
from nubes.drivers.local.lifeline import Lifeline

_READ_BYTES = 1 << 18


class Process:
    """A worker, and what is on its way to it."""

    def __init__(self, node: int, popen: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self.node = node
        self.popen = popen
        self.sock = sock
        self.splitter = wire.Splitter()
        self.messages: list[Any] = []
        self.unsent = bytearray()


class Processes:
    """Workers by number. `folder` is in shared memory; every worker ends with this process, even when it is killed."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.by_node: dict[int, Process] = {}
        self._lifeline = Lifeline(f"{folder}/lifeline")
        self._selector = selectors.DefaultSelector()
        self._dirty: dict[int, Process] = {}
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)

    def start(self, node: int) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        paths = [path for path in sys.path if path]
        command = [sys.executable, "-m", "nubes.data.tasks.worker", str(theirs.fileno()), self.folder]
        popen = subprocess.Popen(
            [*command, self._lifeline.path],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        process = self.by_node[node] = Process(node, popen, ours)
        self._selector.register(ours, selectors.EVENT_READ, process)

    def end(self, node: int) -> tuple[int, int]:
        """Makes sure that a worker is gone; its process id and exit code."""
        process = self.by_node.pop(node)
        self._dirty.pop(node, None)
        self._selector.unregister(process.sock)
        process.sock.close()
        process.popen.kill()
        return process.popen.pid, process.popen.wait()

    def close(self) -> None:
        for node in list(self.by_node):
            self.end(node)
        self._lifeline.close()
        self._selector.close()
        self._wake.close()
        self._woken.close()

    def wake(self) -> None:
        """Ends a `poll` that is under way or comes next. For any thread."""
        self._wake.send(b"x")

    def say(self, node: int, *message: Any) -> None:
        """To be sent with the next `flush`."""
        process = self.by_node[node]
        process.messages.append(message)
        self._dirty[node] = process

    def flush(self) -> None:
        for process in self._dirty.values():
            process.unsent += wire.pack(*process.messages)
            process.messages = []
            self._write(process)
        self._dirty.clear()

    def poll(self, wait: bool) -> Iterator[tuple[int, list[Any] | None]]:
        """(worker, what it said; None if it is gone) for each that said something."""
        for key, mask in self._selector.select(None if wait else 0):
            process: Process = key.data
            if key.fileobj is self._woken:
                self._woken.recv(4096)
                continue
            if mask & selectors.EVENT_WRITE:
                self._write(process)
            if mask & selectors.EVENT_READ:
                yield process.node, self._read(process)

    def _read(self, process: Process) -> list[Any] | None:
        try:
            data = process.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            return None
        return [message for frame in process.splitter.feed(data) for message in frame] if data else None

    def _write(self, process: Process) -> None:
        try:
            while process.unsent:
                del process.unsent[: process.sock.send(process.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            process.unsent.clear()  # reading will tell
        interest = selectors.EVENT_READ | (selectors.EVENT_WRITE if process.unsent else 0)
        if self._selector.get_key(process.sock).events != interest:
            self._selector.modify(process.sock, interest, process)
