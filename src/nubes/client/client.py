"""Calls on one control plane, from any thread or event loop."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

from nubes import ids
from nubes.client.asynchronous import AsyncConnection
from nubes.client.connection import Connection, Target, answered, open_socket
from nubes.client.outcomes import failure, mapped, outcome
from nubes.client.printing import show
from nubes.drivers.local import loading, payload, wire
from nubes.functions.events import SUCCEEDED
from nubes.kernel.errors import CallTimeout, NubesError, Unavailable, UsageError

WINDOW = 2_000  # calls of a map that may be under way at once
_BURST = 64  # calls of a map sent together


class Client:
    """Calls on one control plane, from any thread."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._idle: list[Connection] = []
        first = Connection(path)
        self.shared, self.folder, self.pid = first.shared, first.folder, first.pid
        self._idle.append(first)
        self._owner = os.getpid()
        sys.modules.setdefault(loading.MAIN, sys.modules["__main__"])  # what a script's classes are called in the cloud
        self.segments = payload.Segments(self.shared)
        self.objects = payload.Segments(self.folder + "/objects", durable=True)
        self.by_value = not hasattr(sys.modules.get("__main__"), "__file__")
        self._async: dict[int, AsyncConnection] = {}

    def _take(self) -> Connection:
        if self._owner != os.getpid():  # forked: the parent's connections are not ours
            self._idle, self._owner = [], os.getpid()
            self._async = {}
            self.segments = payload.Segments(self.shared)
        while self._idle:
            connection = self._idle.pop()
            if connection.stream.alive():
                return connection
            connection.stream.close()  # its control plane was stopped in the meantime
        return Connection(self.path)

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Connection]:
        """A connection that goes back when the work is done; if it is not, closing it cancels what it asked for."""
        connection = self._take()
        try:
            yield connection
        except NubesError:
            self._idle.append(connection)
            raise
        except ConnectionError:
            connection.stream.close()
            self._idle.clear()
            raise Unavailable(
                "The control plane went away before the call was answered.",
                "Start it again with `nubes up`, then retry.",
            ) from None
        except BaseException:
            connection.stream.close()
            raise
        self._idle.append(connection)

    def dumps(self, value: Any, keep: bool = False) -> bytes:
        try:
            return payload.dumps(value, self.objects if keep else self.segments, self.by_value)
        except Exception as error:
            raise UsageError(
                f"An argument cannot be sent to the function: {type(error).__name__}: {error}.",
                "Pass plain data, arrays or importable classes; open files, locks and sockets stay where they are.",
            ) from error

    def ask(self, name: str, /, **arguments: Any) -> Any:
        """Asks the control plane `name` (see `nubes.drivers.local.asks`); raises the error it answers with."""
        with self._connection() as connection:
            return connection.ask(name, arguments)

    # -- calls ---------------------------------------------------------------------------------------------------

    def remote(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], route: tuple[str, ...] = ()) -> Any:
        """Runs a call and returns its result. If interrupted, the call is cancelled."""
        data = self.dumps((args, kwargs))
        call = ids.new()
        with self._connection() as connection:
            stream = connection.stream
            stream.send(
                wire.pack(
                    wire.CALL, call, target.function, target.method, target.variant, False, target.key, route, data
                )
            )
            while True:
                frame = stream.recv()
                if frame[0] == wire.RESULT and frame[1] == call:
                    break
                show(frame)
        self._settle(data, frame[5])
        return outcome(frame[2], frame[3], frame[4])

    def _settle(self, data: bytes, released: bool) -> None:
        """The arguments' segment is used again if nobody reads it any more."""
        if data[:1] == b"S":
            path = payload.segment_of(data)
            if released:
                self.segments.recycle(path)
            else:
                self.segments.forget(path)
                payload.discard(path)

    def stream(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
        """Runs a generator and yields what it yields."""
        data = self.dumps((args, kwargs))
        call = ids.new()
        with self._connection() as connection:
            stream = connection.stream
            stream.send(
                wire.pack(wire.CALL, call, target.function, target.method, target.variant, False, target.key, (), data)
            )
            while True:
                frame = stream.recv()
                if frame[0] == wire.YIELD and frame[1] == call:
                    yield outcome(SUCCEEDED, "", frame[2])
                elif frame[0] == wire.RESULT and frame[1] == call:
                    break
                else:
                    show(frame)
        self._settle(data, frame[5])
        outcome(frame[2], frame[3], frame[4])

    def spawn(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], route: tuple[str, ...] = ()) -> int:
        """Accepts a call for good: once this returns its id, the call outlives this process and the control plane's."""
        data = self.dumps((args, kwargs), keep=True)
        call = ids.new()
        with self._connection() as connection:
            stream = connection.stream
            stream.send(
                wire.pack(
                    wire.CALL, call, target.function, target.method, target.variant, True, target.key, route, data
                )
            )
            while True:
                frame = stream.recv()
                if frame[0] == wire.ACCEPTED and frame[1] == call:
                    return int(frame[2])
                if frame[0] == wire.RESULT and frame[1] == call:
                    raise failure(frame[2], frame[3], frame[4])
                show(frame)

    def fetch(self, call: int, timeout: float | None = None) -> Any:
        """The result of a spawned call; `CallTimeout` if it takes longer than `timeout` seconds (0: only look)."""
        end = None if timeout is None else time.monotonic() + timeout
        for wait_s in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4):  # the answer outlives the control plane: wait for its return
            left = None if end is None else max(0.0, end - time.monotonic())
            try:
                with self._connection() as connection:
                    connection.stream.send(wire.pack(wire.FETCH, call, left is None or left > 0))
                    frame = self._await_fetch(connection.stream, call, left)
                return outcome(frame[2], frame[3], frame[4])
            except Unavailable:
                if left is not None and left <= wait_s:
                    raise
                time.sleep(wait_s)
        raise Unavailable(
            f"The control plane at {self.path} went away.", "Start it again with `nubes up`; the call is kept."
        )

    def _await_fetch(self, stream: wire.Stream, call: int, timeout: float | None) -> list[Any]:
        stream.sock.settimeout(timeout or None)
        try:
            while True:
                frame = stream.recv()
                if frame[0] == wire.RESULT and frame[1] == call:
                    return frame
                if frame[0] == wire.PENDING and frame[1] == call:
                    break
                show(frame)
        except TimeoutError:
            stream.sock.settimeout(None)
            stream.send(wire.pack(wire.UNFETCH, call))
        finally:
            stream.sock.settimeout(None)
        raise CallTimeout(f"Call {ids.show(call)} has not ended yet.", "It goes on; ask again later.") from None

    def cancel(self, call: int, terminate: bool = False) -> None:
        with self._connection() as connection:
            connection.stream.send(wire.pack(wire.CANCEL, call, terminate))

    def map(
        self,
        target: Target,
        inputs: Iterable[tuple[tuple[Any, ...], dict[str, Any]]],
        ordered: bool,
        return_exceptions: bool,
    ) -> Iterator[Any]:
        """Runs a call for each input; yields results in the order of the inputs, or as they complete.

        A failed call raises when its turn comes (and cancels the rest), or is yielded as an exception.
        """
        source = iter(inputs)
        with self._connection() as connection:
            stream = connection.stream
            sent: dict[int, tuple[int, bytes]] = {}
            done: dict[int, list[Any]] = {}
            position = following = 0
            exhausted = False
            while True:
                while not exhausted and len(sent) + len(done) < WINDOW:
                    burst = []
                    for args, kwargs in itertools.islice(source, _BURST):
                        data = self.dumps((args, kwargs))
                        call = ids.new()
                        sent[call] = (position, data if data[:1] == b"S" else b"")
                        position += 1
                        burst.append(
                            wire.pack(
                                wire.CALL, call, target.function, target.method, target.variant, False, "", (), data
                            )
                        )
                    exhausted = len(burst) < _BURST
                    if burst:
                        stream.send(b"".join(burst))
                if not sent and not done:
                    return
                frame = stream.recv()
                if frame[0] != wire.RESULT or frame[1] not in sent:
                    show(frame)
                    continue
                index, data = sent.pop(frame[1])
                self._settle(data, frame[5])
                if not ordered:
                    yield mapped(frame, return_exceptions)
                    continue
                done[index] = frame
                while following in done:
                    yield mapped(done.pop(following), return_exceptions)
                    following += 1

    # -- async twins ---------------------------------------------------------------------------------------------

    async def ask_async(self, name: str, /, **arguments: Any) -> Any:
        connection = await self._async_connection()
        return answered(await connection.ask(name, arguments))

    async def _async_connection(self) -> AsyncConnection:
        loop = asyncio.get_running_loop()
        connection = self._async.get(id(loop))
        if connection is None or connection.closed or connection.loop is not loop:
            connection = self._async[id(loop)] = AsyncConnection(loop, open_socket(self.path))
        return connection

    async def remote_async(
        self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], route: tuple[str, ...] = ()
    ) -> Any:
        data = self.dumps((args, kwargs))
        connection = await self._async_connection()
        frame = await connection.call(target, data, False, route)
        self._settle(data, frame[5])
        return outcome(frame[2], frame[3], frame[4])

    async def spawn_async(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        data = self.dumps((args, kwargs), keep=True)
        connection = await self._async_connection()
        frame = await connection.call(target, data, True, ())
        if frame[0] == wire.ACCEPTED:
            return int(frame[2])
        raise failure(frame[2], frame[3], frame[4])

    async def fetch_async(self, call: int, timeout: float | None = None) -> Any:
        connection = await self._async_connection()
        frame = await connection.fetch(call, timeout)
        return outcome(frame[2], frame[3], frame[4])

    async def stream_async(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncIterator[Any]:
        data = self.dumps((args, kwargs))
        connection = await self._async_connection()
        async for frame in connection.stream(target, data):
            if frame[0] == wire.YIELD:
                yield outcome(SUCCEEDED, "", frame[2])
            else:
                self._settle(data, frame[5])
                outcome(frame[2], frame[3], frame[4])

    async def map_async(
        self,
        target: Target,
        inputs: Iterable[tuple[tuple[Any, ...], dict[str, Any]]],
        ordered: bool,
        return_exceptions: bool,
    ) -> AsyncIterator[Any]:
        connection = await self._async_connection()
        source = iter(inputs)
        pending: dict[asyncio.Future[list[Any]], bytes] = {}
        order: list[asyncio.Future[list[Any]]] = []

        def top_up() -> None:
            for args, kwargs in itertools.islice(source, WINDOW - len(order)):
                data = self.dumps((args, kwargs))
                future = connection.begin(target, data, False, ())
                pending[future] = data
                order.append(future)

        top_up()
        while order:
            if ordered:
                future = order.pop(0)
                frame = await future
            else:
                done, _ = await asyncio.wait(order, return_when=asyncio.FIRST_COMPLETED)
                future = next(f for f in order if f in done)
                order.remove(future)
                frame = future.result()
            self._settle(pending.pop(future), frame[5])
            yield mapped(frame, return_exceptions)
            top_up()

    def close(self) -> None:
        for connection in self._idle:
            connection.stream.close()
        for other in self._async.values():
            other.close()
        self._idle.clear()
        if self._owner == os.getpid():
            self.segments.close()
