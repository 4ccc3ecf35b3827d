"""A connection that can be cut: a TCP proxy in a thread."""

from __future__ import annotations

import selectors
import socket
import threading


class Proxy:
    """Passes what comes to `port` on to `target`, until it is cut; then nobody gets through until it is mended."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._cut = False
        self._stalled = threading.Event()
        self._stalled.set()
        self._closed = False
        self.passed = 0  # connections so far
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                one, _ = self._listener.accept()
            except OSError:
                return
            if self._cut:
                one.close()
                continue
            try:
                other = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                one.close()
                continue
            self.passed += 1
            self._pairs.append((one, other))
            threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(one, selectors.EVENT_READ, other)
            selector.register(other, selectors.EVENT_READ, one)
            try:
                while True:
                    for key, _ in selector.select():
                        data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                        self._stalled.wait()
                        if not data:
                            raise OSError
                        key.data.sendall(data)
            except (OSError, ValueError):
                for sock in (one, other):
                    sock.close()

    def cut(self) -> None:
        """Breaks what is there; what was under way is lost."""
        self._cut = True
        for pair in self._pairs:
            for sock in pair:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        self._pairs.clear()

    def mend(self) -> None:
        self._cut = False
        self._stalled.set()

    def stall(self) -> None:
        """Nothing gets through any more, and nobody is told."""
        self._stalled.clear()

    def close(self) -> None:
        self._closed = True
        self.mend()
        self.cut()
        self._listener.close()
