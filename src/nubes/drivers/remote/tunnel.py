"""The socket that instances on another machine find in place of the control plane's: connections go on over TCP."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from nubes.drivers.local import payload, wire
from nubes.drivers.local.peer import Peer
from nubes.drivers.local.sockets import listen
from nubes.kernel.errors import NubesError

_DATA = 8  # where a CALL frame has its arguments


class Tunnel:
    """Listens at `path`. `open_way` makes a connection to the control plane, for a client."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, path: Path, open_way: Callable[[], Awaitable[socket.socket]],
        shared: Path, objects: Path,
    ) -> None:  # fmt: skip
        self.loop = loop
        self.open_way = open_way
        self.path = path
        self.shared, self.objects = shared, objects
        self._sock = listen(path)
        self._passages: set[Passage] = set()
        loop.add_reader(self._sock.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._sock.accept()
        except (BlockingIOError, ConnectionError):
            return
        self._passages.add(Passage(self, connection))

    def gone(self, passage: Passage) -> None:
        self._passages.discard(passage)

    def close(self) -> None:
        self.loop.remove_reader(self._sock.fileno())
        self._sock.close()
        self.path.unlink(missing_ok=True)
        for passage in list(self._passages):
            passage.close()


class Passage:
    """One client's connection. Its large arguments lie in this machine's memory, and go along inside the frames."""

    def __init__(self, tunnel: Tunnel, sock: socket.socket) -> None:
        self._tunnel = tunnel
        self._out: Peer | None = None
        self._before: list[bytes] = []  # said before the way was open
        self._here = Peer(tunnel.loop, sock, self._from_client, self.close)
        self._opening = tunnel.loop.create_task(self._open())

    async def _open(self) -> None:
        try:
            sock = await self._tunnel.open_way()
        except (OSError, TimeoutError, ValueError, NubesError):
            self.close()
            return
        self._out = Peer(self._tunnel.loop, sock, self._from_plane, self.close)
        self._out.send(b"".join(self._before)) if self._before else None
        self._before.clear()

    def _from_client(self, frame: list[Any]) -> None:
        if frame[0] == wire.CALL:
            frame[_DATA] = payload.carried(frame[_DATA])
        data = wire.pack(*frame)
        if self._out is None:
            self._before.append(data)
        else:
            self._out.send(data)

    def _from_plane(self, frame: list[Any]) -> None:
        if frame[0] == wire.WELCOME:
            objects = frame[5] if "://" in frame[5] else str(self._tunnel.objects)
            frame = [frame[0], frame[1], str(self._tunnel.shared), str(self._tunnel.path.parent), os.getpid(), objects]
        self._here.send(wire.pack(*frame))

    def close(self) -> None:
        self._opening.cancel()
        self._tunnel.gone(self)
        for peer in (self._here, self._out):
            if peer is not None:
                peer.close()
