"""Calls on one control plane, from any thread or event loop."""

from __future__ import annotations

import functools
import os
import time
import weakref
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from nubes import ids
from nubes.client.arguments import Arguments
from nubes.client.connection import Connection, Target, answered
from nubes.client.outcomes import not_ended, outcome, outcome_or_error, value, yields
from nubes.client.patience import Patience
from nubes.client.pool import Pool
from nubes.client.window import Inputs, Window
from nubes.drivers.local import wire
from nubes.kernel.errors import Unavailable

if TYPE_CHECKING:
    from nubes.client.asynchronous import AsyncClient

_clients: weakref.WeakSet[Client] = weakref.WeakSet()


@functools.cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_renew_all)


def _renew_all() -> None:
    for client in _clients:
        client.renew()


class Client:
    """Calls on one control plane, from any thread."""

    def __init__(self, path: str) -> None:
        self.path = path
        first = Connection(path)
        self.shared, self.folder, self.pid = first.shared, first.folder, first.pid
        self.arguments = Arguments(first.shared, first.objects)
        self._pool = Pool(path)
        self._pool.put(first)
        _watch_forks()
        _clients.add(self)

    @functools.cached_property
    def aio(self) -> AsyncClient:
        """The same methods for event loops. (Without one, asyncio is not imported: forks are dearer with it.)"""
        from nubes.client.asynchronous import AsyncClient

        return AsyncClient(self.path, self.arguments)

    def renew(self) -> None:
        """After a fork: connections and segments are the parent's."""
        self._pool.renew()
        if "aio" in self.__dict__:
            self.aio.renew()
        self.arguments.renew()

    def ask(self, name: str, /, **arguments: Any) -> Any:
        """Asks the control plane `name` (see `nubes.drivers.local.asks`); raises the error it answers with."""
        with self._pool.connection() as connection:
            frame = connection.put(name, arguments)
        return answered(frame)

    def remote(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs a call and returns its result. If interrupted, the call is cancelled."""
        call = ids.new()
        with self._pool.connection() as connection:
            data = self.arguments.dumps((args, kwargs))  # as long as there is a connection, its segment stays
            connection.send(target.request(call, False, data))
            frame = connection.wait(call, wire.RESULT, wire.YIELD)
            if frame[0] == wire.YIELD:
                raise yields()
        self.arguments.settle(data, frame[5])
        return outcome(frame)

    def stream(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Generator[Any, None, Any]:
        """Runs a call and yields what it yields, as it comes; what it returns is the generator's own result."""
        call = ids.new()
        with self._pool.connection() as connection:
            data = self.arguments.dumps((args, kwargs))
            connection.send(target.request(call, False, data))
            while (frame := connection.wait(call, wire.YIELD, wire.RESULT))[0] == wire.YIELD:
                yield value(frame[2])
        self.arguments.settle(data, frame[5])
        return outcome(frame)

    def spawn(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Accepts a call for good: once this returns its id, the call outlives this process and the control plane's."""
        data = self.arguments.dumps((args, kwargs), keep=True)
        call = ids.new()
        with self._pool.connection() as connection:
            connection.send(target.request(call, True, data))
            frame = connection.wait(call, wire.ACCEPTED, wire.RESULT)
        return int(frame[2]) if frame[0] == wire.ACCEPTED else outcome(frame)

    def fetch(self, call: int, timeout: float | None = None) -> Any:
        """The result of a spawned call; `CallTimeout` if it takes longer than `timeout` seconds (0: only look)."""
        patience = Patience(timeout)
        while True:
            try:
                frame = self._fetched(call, patience.left_s)
                break
            except Unavailable as error:
                time.sleep(patience.pause_s(error))
        return outcome(frame)

    def _fetched(self, call: int, timeout: float | None) -> list[Any]:
        """The RESULT frame of a spawned call, if it comes within `timeout` seconds."""
        waits = timeout is None or timeout > 0
        with self._pool.connection() as connection:
            connection.send(wire.pack(wire.FETCH, call, waits))
            connection.stream.sock.settimeout(timeout or None)
            try:
                frame = connection.wait(call, wire.RESULT, wire.PENDING)
            except TimeoutError:
                frame = [wire.PENDING, call]
            connection.stream.sock.settimeout(None)
            if frame[0] == wire.PENDING and waits:
                connection.send(wire.pack(wire.UNFETCH, call))
        if frame[0] == wire.PENDING:
            raise not_ended(call)
        return frame

    def cancel(self, call: int, terminate: bool = False) -> None:
        """Withdraws a call; with `terminate`, its instance ends even if others run there."""
        with self._pool.connection() as connection:
            connection.send(wire.pack(wire.CANCEL, call, terminate))

    def map(self, target: Target, inputs: Inputs, ordered: bool, return_exceptions: bool) -> Iterator[Any]:
        """Runs a call for each input; yields results in the order of the inputs, or as they complete.

        A failed call raises when its turn comes (and cancels the rest), or is yielded as an exception.
        """
        window = Window(target, inputs, self.arguments, ordered)
        result = outcome_or_error if return_exceptions else outcome
        with self._pool.connection() as connection:
            while True:
                while window.has_room:
                    connection.send(b"".join(window.burst().values()))
                if not window.under_way:
                    return
                for frame in window.take(connection.recv()):
                    yield result(frame)

    def close(self) -> None:
        """Lets go of the control plane: what this process waits for there is cancelled."""
        if "aio" in self.__dict__:
            self.aio.close()
        self._pool.close()
        self.arguments.close()
