"""One framed connection on the control plane's event loop. Output is gathered and sent once per turn of the loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from nubes.drivers.local.wire import Splitter

_buffer = bytearray(1 << 18)  # shared by all peers of the process: each read is copied out at once
_view = memoryview(_buffer)


class Peer:
    """Calls `on_frame` for each frame and `on_close` once, when the other side is gone or `close` was called."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_frame: Callable[[list[Any]], None],
        on_close: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._on_frame = on_frame
        self._on_close = on_close
        self._splitter = Splitter()
        self._out: list[bytes] = []
        self._left = b""  # of an earlier send
        self._scheduled = False
        self.closed = False
        self.unread = False  # it certainly went without reading the last that was sent
        sock.setblocking(False)
        loop.add_reader(self._fd, self._readable)

    def send(self, data: bytes) -> None:
        if self.closed:
            return
        self._out.append(data)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    @property
    def backlog_bytes(self) -> int:
        return len(self._left)

    def _readable(self) -> None:
        try:
            size = self._sock.recv_into(_buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self.unread |= isinstance(error, ConnectionResetError)  # so Linux tells who left something unread
            size = 0
        if not size:
            self.close()
            return
        for frame in self._splitter.feed(bytes(_view[:size])):
            self._on_frame(frame)

    def _flush(self) -> None:
        self._scheduled = False
        if self.closed or self._left:
            return
        data = b"".join(self._out)
        self._out.clear()
        self._send(data)

    def _send(self, data: bytes) -> None:
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.unread = True
            self.close()
            return
        if sent < len(data):
            if not self._left:
                self._loop.add_writer(self._fd, self._writable)
            self._left = data[sent:]

    def _writable(self) -> None:
        left = self._left + b"".join(self._out)
        self._out.clear()
        self._left = b""
        self._loop.remove_writer(self._fd)
        self._send(left)

    def close(self) -> None:
        if self.closed:
            return
        if self._left:
            self.unread = True
        elif self._out:
            data = b"".join(self._out)
            try:
                self.unread |= self._sock.send(data) < len(data)
            except OSError:
                self.unread = True
        self.closed = True
        self._loop.remove_reader(self._fd)
        if self._left:
            self._loop.remove_writer(self._fd)
        self._sock.close()
        self._on_close()
