"""The client's side of the control plane: finding or starting one, and making calls."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import platformdirs

from nubes import ids
from nubes.drivers.local import loading, payload, wire
from nubes.functions.events import CANCELLED, FAILED, SUCCEEDED, TIMED_OUT
from nubes.kernel import errors
from nubes.kernel.errors import (
    CallCancelled,
    CallFailed,
    CallTimeout,
    InstanceDied,
    NubesError,
    Overloaded,
    RemoteError,
    Unavailable,
)

WINDOW = 2_000  # calls of a map that may be under way at once
_BURST = 64  # calls of a map sent together
_numbers = itertools.count(1)


class _RemoteTraceback(Exception):
    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return "\n" + self.text


def outcome(status: str, reason: str, output: bytes) -> Any:
    """The value of a call that ended, or its exception: the remote one as itself, with the remote traceback as cause."""
    if status == SUCCEEDED:
        value = payload.loads(output) if output else None
        segment = payload.segment_of(output)
        if segment and "/objects/" not in segment:
            payload.discard(segment)  # mapped by now; nobody else will read it
        return value
    raise failure(status, reason, output)


def failure(status: str, reason: str, output: bytes) -> BaseException:
    """The exception that tells how a call failed."""
    if status == TIMED_OUT:
        return CallTimeout(reason)
    if status == CANCELLED:
        return CallCancelled(reason)
    if reason.startswith("overloaded: "):
        return Overloaded(reason.removeprefix("overloaded: "))
    if reason.startswith("unavailable: "):
        return Unavailable(reason.removeprefix("unavailable: "))
    if reason.startswith("The instance that ran the call was lost"):
        return InstanceDied(reason, "Give the function retries if it may be run again.")
    if reason or not output:
        return CallFailed(reason or "The call failed.")
    shipped, summary, text = payload.loads(output)
    error: BaseException
    try:
        error = payload.loads(shipped) if shipped else RemoteError(summary)
    except Exception:
        error = RemoteError(summary, "Its class cannot be imported here.")
    error.__cause__ = _RemoteTraceback(text)
    return error


class Connection:
    """A blocking connection, used by one thread at a time."""

    def __init__(self, path: str) -> None:
        self.stream = wire.Stream(_open(path))
        self.stream.send(wire.pack(wire.HELLO, 1))
        _, self.protocol, self.shared, self.folder, self.pid = self.stream.recv()

    def ask(self, name: str, arguments: dict[str, Any]) -> Any:
        number = next(_numbers)
        self.stream.send(wire.pack(wire.ASK, number, name, arguments))
        while True:
            frame = self.stream.recv()
            if frame[0] == wire.ANSWER and frame[1] == number:
                return answered(frame)
            _show(frame)


def answered(frame: list[Any]) -> Any:
    """The answer in an ANSWER frame; raises the error it stands for."""
    _, _, failed, answer = frame
    if failed:
        kind = getattr(errors, failed, NubesError)
        raise kind(*answer)
    return answer


def _open(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        if len(path) < 100:
            sock.connect(path)
        else:
            folder = os.open(os.path.dirname(path), os.O_RDONLY)
            try:
                sock.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
            finally:
                os.close(folder)
    except OSError as error:
        sock.close()
        raise Unavailable(f"No control plane answers at {path} ({error.strerror}).", "Start one with `nubes up`.") from None
    return sock


def _show(frame: list[Any]) -> None:
    """Prints a line that a remote function printed."""
    if frame[0] == wire.LOG:
        _, _, function, stream, text = frame
        printer(function, stream, text)


def _print(function: str, stream: str, text: str) -> None:
    label = function.partition("/")[2] or function
    out = sys.stderr if stream == "stderr" else sys.stdout
    for line in text.splitlines():
        out.write(f"[{label}] {line}\n")
    out.flush()


printer: Callable[[str, str, str], None] = _print


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
        self._async: dict[int, _AsyncConnection] = {}

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
                "The control plane went away before the call was answered.", "Start it again with `nubes up`, then retry."
            ) from None
        except BaseException:
            connection.stream.close()
            raise
        self._idle.append(connection)

    def dumps(self, value: Any, keep: bool = False) -> bytes:
        try:
            return payload.dumps(value, self.objects if keep else self.segments, self.by_value)
        except Exception as error:
            raise errors.UsageError(
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
            stream.send(wire.pack(wire.CALL, call, target.function, target.method, target.variant, False, target.key, route, data))
            while True:
                frame = stream.recv()
                if frame[0] == wire.RESULT and frame[1] == call:
                    break
                _show(frame)
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
            stream.send(wire.pack(wire.CALL, call, target.function, target.method, target.variant, False, target.key, (), data))
            while True:
                frame = stream.recv()
                if frame[0] == wire.YIELD and frame[1] == call:
                    yield outcome(SUCCEEDED, "", frame[2])
                elif frame[0] == wire.RESULT and frame[1] == call:
                    break
                else:
                    _show(frame)
        self._settle(data, frame[5])
        outcome(frame[2], frame[3], frame[4])

    def spawn(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], route: tuple[str, ...] = ()) -> int:
        """Accepts a call for good: once this returns its id, the call outlives this process and the control plane's."""
        data = self.dumps((args, kwargs), keep=True)
        call = ids.new()
        with self._connection() as connection:
            stream = connection.stream
            stream.send(wire.pack(wire.CALL, call, target.function, target.method, target.variant, True, target.key, route, data))
            while True:
                frame = stream.recv()
                if frame[0] == wire.ACCEPTED and frame[1] == call:
                    return int(frame[2])
                if frame[0] == wire.RESULT and frame[1] == call:
                    raise failure(frame[2], frame[3], frame[4])
                _show(frame)

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
        raise Unavailable(f"The control plane at {self.path} went away.", "Start it again with `nubes up`; the call is kept.")

    def _await_fetch(self, stream: wire.Stream, call: int, timeout: float | None) -> list[Any]:
        stream.sock.settimeout(timeout or None)
        try:
            while True:
                frame = stream.recv()
                if frame[0] == wire.RESULT and frame[1] == call:
                    return frame
                if frame[0] == wire.PENDING and frame[1] == call:
                    break
                _show(frame)
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
        self, target: Target, inputs: Iterable[tuple[tuple[Any, ...], dict[str, Any]]], ordered: bool, return_exceptions: bool
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
                            wire.pack(wire.CALL, call, target.function, target.method, target.variant, False, "", (), data)
                        )
                    exhausted = len(burst) < _BURST
                    if burst:
                        stream.send(b"".join(burst))
                if not sent and not done:
                    return
                frame = stream.recv()
                if frame[0] != wire.RESULT or frame[1] not in sent:
                    _show(frame)
                    continue
                index, data = sent.pop(frame[1])
                self._settle(data, frame[5])
                if not ordered:
                    yield _mapped(frame, return_exceptions)
                    continue
                done[index] = frame
                while following in done:
                    yield _mapped(done.pop(following), return_exceptions)
                    following += 1

    # -- async twins ---------------------------------------------------------------------------------------------

    async def ask_async(self, name: str, /, **arguments: Any) -> Any:
        connection = await self._async_connection()
        return answered(await connection.ask(name, arguments))

    async def _async_connection(self) -> _AsyncConnection:
        loop = asyncio.get_running_loop()
        connection = self._async.get(id(loop))
        if connection is None or connection.closed or connection.loop is not loop:
            connection = self._async[id(loop)] = _AsyncConnection(loop, _open(self.path))
        return connection

    async def remote_async(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], route: tuple[str, ...] = ()) -> Any:
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
        self, target: Target, inputs: Iterable[tuple[tuple[Any, ...], dict[str, Any]]], ordered: bool, return_exceptions: bool
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
            yield _mapped(frame, return_exceptions)
            top_up()

    def close(self) -> None:
        for connection in self._idle:
            connection.stream.close()
        for other in self._async.values():
            other.close()
        self._idle.clear()
        if self._owner == os.getpid():
            self.segments.close()


def _mapped(frame: list[Any], return_exceptions: bool) -> Any:
    try:
        return outcome(frame[2], frame[3], frame[4])
    except Exception as error:
        if return_exceptions:
            return error
        raise


class Target:
    """What a call is for."""

    __slots__ = ("function", "key", "method", "variant")

    def __init__(self, function: str, method: str = "", variant: str = "", key: str = "") -> None:
        self.function = function
        self.method = method
        self.variant = variant
        self.key = key


class _AsyncConnection:
    """Many calls at once over one connection of an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        from nubes.drivers.local.peer import Peer

        self.loop = loop
        self.waiting: dict[int, asyncio.Future[list[Any]]] = {}
        self.streams: dict[int, asyncio.Queue[list[Any]]] = {}
        self.asked: dict[int, asyncio.Future[list[Any]]] = {}
        self.peer = Peer(loop, sock, self._frame, self._lost)
        self.peer.send(wire.pack(wire.HELLO, 1))

    @property
    def closed(self) -> bool:
        return self.peer.closed

    def begin(self, target: Target, data: bytes, keep: bool, route: tuple[str, ...]) -> asyncio.Future[list[Any]]:
        call = ids.new()
        future: asyncio.Future[list[Any]] = self.loop.create_future()
        self.waiting[call] = future
        self.peer.send(wire.pack(wire.CALL, call, target.function, target.method, target.variant, keep, target.key, route, data))
        if not keep:
            future.add_done_callback(lambda done: self._cancelled(call) if done.cancelled() else None)
        return future

    async def call(self, target: Target, data: bytes, keep: bool, route: tuple[str, ...]) -> list[Any]:
        return await self.begin(target, data, keep, route)

    async def ask(self, name: str, arguments: dict[str, Any]) -> list[Any]:
        number = next(_numbers)
        future = self.asked[number] = self.loop.create_future()
        self.peer.send(wire.pack(wire.ASK, number, name, arguments))
        try:
            frame: list[Any] = await future
            return frame
        except asyncio.CancelledError:
            self.peer.send(wire.pack(wire.UNASK, number))
            raise
        finally:
            self.asked.pop(number, None)

    async def fetch(self, call: int, timeout: float | None) -> list[Any]:
        future = self.waiting.setdefault(call, self.loop.create_future())
        self.peer.send(wire.pack(wire.FETCH, call, timeout is None or timeout > 0))
        try:
            frame = await asyncio.wait_for(asyncio.shield(future), timeout or None)
        except TimeoutError:
            self.waiting.pop(call, None)
            self.peer.send(wire.pack(wire.UNFETCH, call))
            frame = [wire.PENDING]
        if frame[0] == wire.PENDING:
            raise CallTimeout(f"Call {ids.show(call)} has not ended yet.", "It goes on; ask again later.")
        return frame

    async def stream(self, target: Target, data: bytes) -> AsyncIterator[list[Any]]:
        call = ids.new()
        queue = self.streams[call] = asyncio.Queue()
        self.peer.send(wire.pack(wire.CALL, call, target.function, target.method, target.variant, False, target.key, (), data))
        ended = False
        try:
            while not ended:
                frame = await queue.get()
                ended = frame[0] == wire.RESULT
                yield frame
        finally:
            del self.streams[call]
            if not ended:
                self._cancelled(call)

    def _cancelled(self, call: int) -> None:
        self.waiting.pop(call, None)
        self.peer.send(wire.pack(wire.CANCEL, call, False))

    def _frame(self, frame: list[Any]) -> None:
        if frame[0] in (wire.RESULT, wire.ACCEPTED, wire.PENDING, wire.YIELD):
            queue = self.streams.get(frame[1])
            if queue is not None:
                queue.put_nowait(frame)
            elif frame[0] != wire.YIELD:
                future = self.waiting.pop(frame[1], None)
                if future is not None and not future.done():
                    future.set_result(frame)
        elif frame[0] == wire.ANSWER:
            answer = self.asked.get(frame[1])
            if answer is not None and not answer.done():
                answer.set_result(frame)
        else:
            _show(frame)

    def _lost(self) -> None:
        gone = [wire.RESULT, 0, FAILED, "The control plane went away before the call was answered.", b"", False]
        for future in self.waiting.values():
            if not future.done():
                future.set_result(gone)
        for queue in self.streams.values():
            queue.put_nowait(gone)
        for answer in self.asked.values():
            if not answer.done():
                answer.set_result([wire.ANSWER, 0, "Unavailable", [gone[3], "Start it again with `nubes up`, then retry."]])

    def close(self) -> None:
        if not self.loop.is_closed():
            self.peer.close()


# -- finding a control plane -----------------------------------------------------------------------------------------


_shared: Client | None = None
_lock = threading.Lock()


def data_folder() -> Path:
    """The data folder: `NUBES_DATA`, or the user's."""
    return Path(os.environ.get("NUBES_DATA") or platformdirs.user_data_dir("nubes")).expanduser().absolute()


def connect(start: bool = True) -> Client:
    """This process's client: of `NUBES_SOCKET`, of the control plane on the data folder, or of one it starts, embedded.

    Raises `Unavailable` if there is none and `start` is false.
    """
    global _shared
    with _lock:
        if _shared is not None and os.path.exists(_shared.path):
            return _shared
        path = os.environ.get("NUBES_SOCKET") or str(data_folder() / "socket")
        try:
            _shared = Client(path)
        except (Unavailable, ConnectionError):
            if not start or "NUBES_SOCKET" in os.environ:
                raise
            _start_embedded(data_folder())
            _shared = Client(path)
        return _shared


def disconnect() -> None:
    """Lets go of the control plane; one that was started for this process ends."""
    global _shared
    with _lock:
        if _shared is not None:
            _shared.close()
            _shared = None
        for process, watch in _embedded:
            os.close(watch)
            process.wait()
        _embedded.clear()


_embedded: list[tuple[subprocess.Popen[bytes], int]] = []


def _start_embedded(folder: Path) -> None:
    """Starts a control plane that ends with this process."""
    watch_reading, watch_writing = os.pipe()
    ready_reading, ready_writing = os.pipe()
    policies = [f"{seam}={os.environ[name]}" for seam, name in POLICY_VARIABLES.items() if os.environ.get(name)]
    argv = [sys.executable, "-P", "-m", "nubes.drivers.local.control_plane", str(folder), str(watch_reading), str(ready_writing), *policies]
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            argv, pass_fds=(watch_reading, ready_writing), stdin=subprocess.DEVNULL, stderr=complaints, start_new_session=True
        )
        os.close(watch_reading)
        os.close(ready_writing)
        ready = os.read(ready_reading, 1)
        os.close(ready_reading)
        if not ready:
            os.close(watch_writing)
            process.wait()
            complaints.seek(0)
            text = complaints.read().decode(errors="replace").strip()
            raise Unavailable(f"The control plane did not start: {text.splitlines()[-1] if text else 'it said nothing'}")
    if not _embedded:
        atexit.register(disconnect)
    _embedded.append((process, watch_writing))


POLICY_VARIABLES = {
    "keep-alive": "NUBES_KEEP_ALIVE",
    "queueing": "NUBES_QUEUEING",
    "cold-start": "NUBES_COLD_START",
}
