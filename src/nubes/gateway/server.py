"""The HTTP server beside the control plane, on the same event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import re
import signal
import socket
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, Iterator
from importlib.resources import files
from typing import Any

import uvicorn
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.types import Message, Receive, Scope, Send

from nubes import __version__
from nubes.drivers.local.control_plane import ControlPlane
from nubes.drivers.local.token import token_of
from nubes.gateway import openapi
from nubes.gateway.api import Api
from nubes.gateway.health import Health
from nubes.gateway.metrics import Metrics
from nubes.gateway.models import Models
from nubes.gateway.problems import Problem, of_error
from nubes.gateway.web import WebEndpoints
from nubes.kernel.errors import NubesError

GRACE_S = 30  # how long requests under way may take when the server stops
_REQUEST_ID = re.compile(r"[\w.:=+/-]{1,128}")
_GUARDED = ("/v1/", "/tokenize", "/detokenize", "/metrics", "/openapi.json")


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `NubesError` in plain words if the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(1024)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise NubesError(
                f"Port {port} on {host} is in use.", "Choose another with --port, or any free one with --port 0."
            ) from None
        if error.errno == errno.EACCES:
            raise NubesError(
                f"Port {port} may not be used by this user.", "Choose one above 1023 with --port."
            ) from None
        raise NubesError(
            f"{host}:{port} cannot be listened on: {error.strerror}.", "Choose another with --host and --port."
        ) from None
    except socket.gaierror as error:
        sock.close()
        raise NubesError(
            f"{host!r} is no address of this machine: {error.strerror}.", "Use --host 127.0.0.1."
        ) from None
    sock.setblocking(False)
    return sock


class _Server(uvicorn.Server):
    """Signals are the control plane's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Gateway:
    """Serves a control plane over HTTP. `url` says where."""

    def __init__(self, plane: ControlPlane, sock: socket.socket) -> None:
        self.plane = plane
        self.token = token_of(plane.folder)
        self.metrics = Metrics(plane)
        self.health = Health(plane)
        host, port = sock.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._sock = sock
        web = WebEndpoints(plane, self.check_token)
        router = Router(
            [
                Route("/", self._root),
                Route("/livez", self._livez),
                Route("/readyz", self._readyz),
                Route("/health", self._readyz),
                Route("/version", self._version),
                Route("/metrics", self._metrics),
                Route("/openapi.json", self._openapi),
                Route("/docs", self._docs),
                *Models(plane, web).routes(),
                Mount("/v1", Router(Api(plane).routes(), redirect_slashes=False)),
                Mount("/", web),
            ],
            redirect_slashes=False,
        )
        config = uvicorn.Config(
            Front(router, self.check_token, self.metrics), lifespan="off", log_level="error", access_log=False,
            server_header=False, ws="websockets-sansio", timeout_graceful_shutdown=GRACE_S, loop="none",
        )  # fmt: skip
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> Gateway:
        """Returns once connections are taken; writes `<data>/url`."""
        self._task = asyncio.ensure_future(self._server.serve([self._sock]))
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise NubesError("The gateway did not start.")
            await asyncio.sleep(0.005)
        (self.plane.folder / "url").write_text(self.url + "\n")
        return self

    async def close(self) -> None:
        """Not ready first, then the end once requests under way have ended; a second Ctrl-C does not wait for them."""
        self.health.draining = True
        (self.plane.folder / "url").unlink(missing_ok=True)
        self._server.should_exit = True
        for name in (signal.SIGINT, signal.SIGTERM):
            self.plane.loop.add_signal_handler(name, self._hurry)
        if self._task is not None:
            await self._task

    def _hurry(self) -> None:
        self._server.force_exit = True

    def check_token(self, scope: Scope) -> None:
        """Raises a 401 unless the request carries the token."""
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, token = given.partition(b" ")
        if kind.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self.token.encode()):
            what = "The token is not the right one." if given else "A token is needed."
            hint = "Send it as `Authorization: Bearer TOKEN`; it stands in the file `token` of the data folder."
            raise Problem(401, f"{what} {hint}", code="invalid_token", headers={"www-authenticate": "Bearer"})

    # -- endpoints ------------------------------------------------------------------------------------------------

    async def _root(self, request: Request) -> Response:
        return RedirectResponse("/docs")

    async def _livez(self, request: Request) -> Response:
        return PlainTextResponse("ok")

    async def _readyz(self, request: Request) -> Response:
        trouble = self.health.trouble()
        if trouble:
            return JSONResponse({"status": "not ready", "reason": trouble}, 503, {"retry-after": "1"})
        return JSONResponse({"status": "ready"})

    async def _version(self, request: Request) -> Response:
        return JSONResponse({"name": "nubes", "version": __version__})

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _openapi(self, request: Request) -> Response:
        return JSONResponse(openapi.describe(self.plane.controller.specs, str(request.base_url).rstrip("/")))

    async def _docs(self, request: Request) -> Response:
        return HTMLResponse((files("nubes.gateway") / "docs.html").read_text())


class Front:
    """What every request passes: its id, its token where one is needed, errors as JSON, time and count."""

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        check_token: Callable[[Scope], None],
        metrics: Metrics,
    ) -> None:
        self._app = app
        self._check_token = check_token
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = time.monotonic()
        scope["app"] = self  # the router then raises what it cannot answer
        given = next((v.decode("latin-1") for n, v in scope["headers"] if n == b"x-request-id"), "")
        id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        status = 0

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.accept"):
                status = message.get("status", 101)
                message["headers"] = [*message.get("headers", []), (b"x-request-id", id.encode())]
            await send(message)

        try:
            try:
                if scope["path"].startswith(_GUARDED):
                    self._check_token(scope)
                await self._app(scope, receive, tagged)
            except (Problem, NubesError, HTTPException) as error:
                if status:
                    raise
                await _refuse(_problem(error, scope), scope, receive, tagged)
            except Exception:
                if status:
                    raise
                traceback.print_exc()
                problem = Problem(500, f"The gateway failed; request {id} is in its error output.", code="internal")
                await _refuse(problem, scope, receive, tagged)
        finally:
            metrics = self._metrics
            key = (_route(scope), str(status))
            metrics.http[key] = metrics.http.get(key, 0) + 1
            metrics.http_s.observe(time.monotonic() - begun)


def _problem(error: Problem | NubesError | HTTPException, scope: Scope) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, NubesError):
        return of_error(error)
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if error.status_code == 404:
        return Problem(404, f"Nothing answers at {scope['path']}. See /docs for what does.", code="not_found")
    if error.status_code == 405:
        message = f"{scope.get('method')} is not for {scope['path']}. Use {headers.get('allow', 'another method')}."
        return Problem(405, message, code="method_not_allowed", headers=headers)
    return Problem(error.status_code, error.detail, headers=headers)


async def _refuse(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": problem.message[:120]})
        return
    response: Any = JSONResponse(problem.body(), problem.status, problem.headers)
    await response(scope, receive, send)


def _route(scope: Scope) -> str:
    """The route's pattern, so that there are only as many labels as routes."""
    path: str = scope["path"]
    if path.startswith("/v1/functions/"):
        return (
            "/v1/functions/" + path.rpartition("/")[2]
            if path.endswith(("/invoke", "/spawn", "/stream"))
            else "/v1/functions"
        )
    if path.startswith("/v1/"):
        return "/v1/calls"
    return (
        path
        if path in ("/", "/livez", "/readyz", "/health", "/version", "/metrics", "/openapi.json", "/docs")
        else "web"
    )
