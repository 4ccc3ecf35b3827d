"""Blocking connections to one control plane, for any number of threads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from nubes.client.connection import Connection


class Pool:
    """Connections that wait to be used again. Each is used by one thread at a time."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._idle: list[Connection] = []

    def renew(self) -> None:
        """After a fork: the connections are the parent's."""
        self._idle = []

    def put(self, connection: Connection) -> None:
        self._idle.append(connection)

    def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.stream.alive():
                return connection
            connection.close()  # its control plane was stopped in the meantime
        return Connection(self.path)

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection that goes back when the work is done; if it is not, closing it cancels what it asked for."""
        connection = self._take()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()
