"""Web endpoints of users: functions reached with a query or a JSON body, and whole ASGI apps."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nubes.drivers.local import payload, wire
from nubes.functions.spec import Web
from nubes.gateway import calls, plain
from nubes.gateway.api import HUNG_UP, events
from nubes.gateway.bridge import read_message
from nubes.gateway.calls import Target, Waiting
from nubes.gateway.openapi import signature_of
from nubes.gateway.problems import Problem, of_outcome
from nubes.gateway.requests import Arguments, body_of, bound, from_query, or_gone, parse

if TYPE_CHECKING:
    from collections.abc import Callable

    from nubes.drivers.local.control_plane import ControlPlane

CHANNEL_S = 60.0  # how long an instance may take to open its end of a WebSocket
GOODBYE_S = 5.0  # how long an app may go on after a WebSocket's client left


class WebEndpoints:
    """Serves /app/function, /app/Class.method and, for ASGI apps, everything below."""

    def __init__(self, plane: ControlPlane, check_token: Callable[[Scope], None]) -> None:
        self.plane = plane
        self.check_token = check_token

    def find(self, path: str) -> tuple[Target, Web, str]:
        """The endpoint of a path, and where it is mounted. Raises `Problem`."""
        app, _, rest = path.lstrip("/").partition("/")
        name = rest.partition("/")[0]
        specs = self.plane.controller.specs
        target = calls.lookup(specs, app, name)
        web = target.web if target is not None else None
        if target is None or web is None or (web.kind == "function" and rest != name):
            there = ", ".join(endpoints(specs)) or "none"
            raise Problem(404, f"Nothing answers at {path}. Web endpoints are: {there}.", code="not_found")
        return target, web, f"/{app}/{name}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        target, web, root = self.find(scope["path"])
        if not web.public:
            self.check_token(scope)
        if scope["type"] == "websocket":
            if web.kind != "asgi":
                raise Problem(404, f"{root} takes no WebSockets.", code="not_found")
            await self._websocket(target, root, scope, receive, send)
        elif web.kind == "asgi":
            request = Request(scope, receive)
            await self.forward(target, root, request, await body_of(request), send)
        else:
            response = await self._function(target, web, Request(scope, receive))
            await response(scope, receive, send)

    # -- functions ------------------------------------------------------------------------------------------------

    async def _function(self, target: Target, web: Web, request: Request) -> Response:
        if request.method != web.method and not (request.method == "HEAD" and web.method == "GET"):
            raise Problem(
                405,
                f"Use {web.method} here, not {request.method}.",
                code="method_not_allowed",
                headers={"allow": web.method},
            )
        signature = signature_of(target.spec, target.method)
        kwargs = from_query(request, signature)
        args: list[Any] = []
        given = parse(await body_of(request))
        if isinstance(given, dict):
            kwargs.update(given)
        elif given is not None:
            args = [given]
        bound(signature, Arguments(args, kwargs, {}))
        waiting = Waiting(self.plane)
        waiting.submit(target, args, kwargs)
        if signature.generator if signature else target.spec.generator:
            return events(waiting, target, tell=False)
        try:
            outcome = await or_gone(request, waiting.done)
        except ConnectionError:
            return Response(status_code=HUNG_UP)
        finally:
            waiting.cancel()
        return Response(await calls.value(outcome, target.label, tell=False), media_type="application/json")

    # -- ASGI apps ------------------------------------------------------------------------------------------------

    async def forward(self, target: Target, root: str, request: Request, body: bytes, send: Send) -> None:
        """Has an app, mounted at `root`, answer a request whose body was read."""
        waiting = Waiting(self.plane)
        waiting.submit(target, (_plain(request.scope, root), body), {})
        answered = asyncio.Event()
        pump = asyncio.ensure_future(self._pump(waiting, send, answered))
        try:
            await or_gone(request, asyncio.shield(pump))
        except ConnectionError:
            if answered.is_set():  # what the app still does in the background is part of the call
                await pump
            else:
                pump.cancel()
        finally:
            waiting.cancel()

    async def _pump(self, waiting: Waiting, send: Send, answered: asyncio.Event) -> None:
        begun = False
        async for item in waiting.items():
            message = payload.load_mapped(item, plain.unpickle)[0]
            calls.discard(item)
            begun = True
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                answered.set()
            await send(message)
        outcome = waiting.done.result()
        if not begun:
            raise of_outcome(*outcome, tell=False)
        if not answered.is_set():
            raise RuntimeError(f"The app failed in the middle of its answer: {outcome.reason or outcome.status}")

    async def _websocket(self, target: Target, root: str, scope: Scope, receive: Receive, send: Send) -> None:
        waiting = Waiting(self.plane)
        path = str(self.plane.shared / f"ws-{waiting.call:x}")
        connected: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = self.plane.loop.create_future()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if connected.done():
                writer.close()
            else:
                connected.set_result((reader, writer))

        server = await asyncio.start_unix_server(accept, path)
        try:
            waiting.submit(target, (_plain(scope, root),), {"channel": path})
            either: set[asyncio.Future[Any]] = {connected, waiting.done}
            await asyncio.wait(either, timeout=CHANNEL_S, return_when=asyncio.FIRST_COMPLETED)
            if not connected.done():
                await send({"type": "websocket.close", "code": 1013, "reason": "the app did not take the connection"})
                return
            await self._exchange(*connected.result(), receive, send)
        finally:
            server.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            if not waiting.done.done():
                await asyncio.wait({waiting.done}, timeout=GOODBYE_S)
            waiting.cancel()

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, receive: Receive, send: Send
    ) -> None:
        """Hands messages on, both ways, until either side is done."""
        closed = False

        async def inwards() -> None:
            while True:
                message = await receive()
                writer.write(wire.pack(dict(message)))
                await writer.drain()
                if message["type"] == "websocket.disconnect":
                    return

        async def outwards() -> None:
            nonlocal closed
            while (message := await read_message(reader)) is not None:
                closed = closed or message["type"] == "websocket.close"
                await send(message)

        coming, going = asyncio.ensure_future(inwards()), asyncio.ensure_future(outwards())
        await asyncio.wait({coming, going}, return_when=asyncio.FIRST_COMPLETED)
        left = coming.done()
        coming.cancel()
        going.cancel()
        writer.close()
        if not closed and not left:
            await send({"type": "websocket.close", "code": 1011, "reason": "the app ended"})


def endpoints(specs: Any) -> list[str]:
    """The paths that answer."""
    found = []
    for spec in specs.values():
        if spec.kind == "class":
            found += [f"/{spec.name}.{method}" for method in spec.endpoints]
        elif spec.web is not None:
            found.append(f"/{spec.name}")
    return found


_SCOPE = (
    "type",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "headers",
    "client",
    "server",
    "subprotocols",
)


def _plain(scope: Scope, root: str) -> dict[str, Any]:
    """What an instance needs of a scope: plain data. The path stays whole; `root_path` says where the app is."""
    kept = {key: scope[key] for key in _SCOPE if key in scope}
    kept["headers"] = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
    return {**kept, "root_path": root, "asgi": {"version": "3.0", "spec_version": "2.3"}}
