"""The instance's side of ASGI: a request or a WebSocket is one call, what the app sends is what the call yields."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from nubes.drivers.local import wire

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
_LENGTH_BYTES = 4


def asgi_caller(app: ASGIApp) -> Callable[..., AsyncIterator[Message]]:
    """Turns an ASGI app into an async generator function of (scope, body), which yields the messages the app sends.

    With `channel`, the path of a Unix socket, messages go both ways over it instead: that is how WebSockets run. The
    app's lifespan begins with the first call and ends with the instance.
    """
    lifespan = _Lifespan(app)

    async def call(scope: dict[str, Any], body: bytes = b"", channel: str = "") -> AsyncIterator[Message]:
        await lifespan.begin()
        scope["state"] = dict(lifespan.state)
        if channel:
            await _over_channel(app, scope, channel)
            return
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        requests: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if requests:
                return requests.pop()
            await asyncio.Event().wait()  # a client that hangs up cancels the call, and so this
            raise AssertionError

        async def send(message: Message) -> None:
            messages.put_nowait(dict(message))

        task = asyncio.ensure_future(app(scope, receive, send))
        task.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            while (message := await messages.get()) is not None:
                yield message
            await task  # raises what the app raised
        finally:
            task.cancel()

    return call


async def _over_channel(app: ASGIApp, scope: dict[str, Any], channel: str) -> None:
    reader, writer = await asyncio.open_unix_connection(channel)

    async def receive() -> Message:
        return await read_message(reader) or {"type": "websocket.disconnect", "code": 1006}

    async def send(message: Message) -> None:
        writer.write(wire.pack(dict(message)))
        await writer.drain()

    try:
        await app(scope, receive, send)
    finally:
        writer.close()


async def read_message(reader: asyncio.StreamReader) -> Message | None:
    """The next message on a channel; None when the other side is gone."""
    try:
        length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "little")
        message: Message = wire.unbody(await reader.readexactly(length))[0]
        return message
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


class _Lifespan:
    """Startup before the first request, shutdown when the instance's loop ends; apps without one go without."""

    def __init__(self, app: ASGIApp) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._task: asyncio.Task[None] | None = None
        self._begun: asyncio.Future[None] | None = None
        self._asked = False

    async def begin(self) -> None:
        if self._begun is None:
            self._begun = asyncio.get_running_loop().create_future()
            self._task = asyncio.ensure_future(self._run(self._begun))
        await asyncio.shield(self._begun)

    async def _run(self, begun: asyncio.Future[None]) -> None:
        async def receive() -> Message:
            if not self._asked:
                self._asked = True
                return {"type": "lifespan.startup"}
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:  # the loop ends: time to say goodbye
                pass
            return {"type": "lifespan.shutdown"}

        async def send(message: Message) -> None:
            if begun.done():
                return
            if message["type"] == "lifespan.startup.failed":
                begun.set_exception(RuntimeError(f"The app did not start: {message.get('message', '')}"))
            elif message["type"] == "lifespan.startup.complete":
                begun.set_result(None)

        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self._app(scope, receive, send)
        except Exception:
            pass  # by the ASGI specification: an app that raises here knows no lifespan
        if not begun.done():
            begun.set_result(None)
