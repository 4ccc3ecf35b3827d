"""Calls on one control plane from event loops: one connection for each loop, many calls at once on it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from typing import Any

from nubes import ids
from nubes.client.arguments import Arguments
from nubes.client.connection import Target, answered, open_socket
from nubes.client.multiplexing import AsyncConnection
from nubes.client.outcomes import outcome, outcome_or_error, value
from nubes.client.patience import Patience
from nubes.client.window import Inputs, Window
from nubes.drivers.local import payload, wire
from nubes.kernel.errors import Unavailable


class AsyncClient:
    """The methods of `Client`, for event loops. A task that is cancelled cancels the call it waits for."""

    def __init__(self, path: str, arguments: Arguments) -> None:
        self.path = path
        self.arguments = arguments
        self._connections: dict[int, AsyncConnection] = {}

    def renew(self) -> None:
        """After a fork: the connections are the parent's."""
        self._connections = {}

    def _connection(self) -> AsyncConnection:
        loop = asyncio.get_running_loop()
        connection = self._connections.get(id(loop))
        if connection is None or connection.closed or connection.loop is not loop:
            connection = self._connections[id(loop)] = AsyncConnection(loop, open_socket(self.path))
        return connection

    async def ask(self, name: str, /, **arguments: Any) -> Any:
        return answered(await self._connection().put(name, arguments))

    async def remote(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        connection = self._connection()
        data = self.arguments.dumps((args, kwargs))  # as long as there is a connection, its segment stays
        frame = await connection.call(target, data)
        self.arguments.settle(data, frame[5])
        return outcome(frame)

    async def stream(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncIterator[Any]:
        call = ids.new()
        with self._connection().inbox() as inbox:
            data = self.arguments.dumps((args, kwargs))
            inbox.send({call: target.request(call, False, data)})
            while (frame := await inbox.get())[0] == wire.YIELD:
                yield value(frame[2])
        self.arguments.settle(data, frame[5])
        outcome(frame)

    async def spawn(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        pack = functools.partial(self.arguments.dumps, (args, kwargs), keep=True)
        data = await asyncio.to_thread(pack) if self.arguments.objects.far else pack()
        frame = await self._connection().call(target, data, keep=True)
        return int(frame[2]) if frame[0] == wire.ACCEPTED else outcome(frame)

    async def fetch(self, call: int, timeout: float | None = None) -> Any:
        patience = Patience(timeout)
        while True:
            try:
                frame = await self._connection().fetch(call, patience.left_s)
                break
            except Unavailable as error:
                await asyncio.sleep(patience.pause_s(error))
        return await asyncio.to_thread(outcome, frame) if payload.is_far(frame[4]) else outcome(frame)

    async def map(self, target: Target, inputs: Inputs, ordered: bool, return_exceptions: bool) -> AsyncIterator[Any]:
        window = Window(target, inputs, self.arguments, ordered)
        result = outcome_or_error if return_exceptions else outcome
        with self._connection().inbox() as inbox:
            while True:
                while window.has_room:
                    inbox.send(window.burst())
                if not window.under_way:
                    return
                for frame in window.take(await inbox.get()):
                    yield result(frame)

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()
