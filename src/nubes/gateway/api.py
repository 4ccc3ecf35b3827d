"""The API under /v1: invoke, spawn, poll, cancel and stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from nubes import ids
from nubes.functions import events as e
from nubes.functions.events import SUCCEEDED
from nubes.gateway import calls
from nubes.gateway.calls import Outcome, Target, Waiting
from nubes.gateway.openapi import signature_of
from nubes.gateway.problems import Problem
from nubes.gateway.requests import Arguments, arguments, bound, or_gone, timeout_s
from nubes.kernel.errors import UsageError

if TYPE_CHECKING:
    from nubes.drivers.local.control_plane import ControlPlane

HUNG_UP = 499  # what is logged of a request whose client left; nobody gets to see it
PING_S = 15.0


class Api:
    """Endpoints over one control plane."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane

    def routes(self) -> list[Route]:
        function = "/functions/{app}/{function}"
        return [
            Route("/functions", self.functions, methods=["GET"]),
            Route(function + "/invoke", self.invoke, methods=["POST"]),
            Route(function + "/spawn", self.spawn, methods=["POST"]),
            Route(function + "/stream", self.stream, methods=["POST"]),
            Route("/calls/{id}", self.poll, methods=["GET"]),
            Route("/calls/{id}", self.cancel, methods=["DELETE"]),
        ]

    async def functions(self, request: Request) -> Response:
        return JSONResponse({"functions": calls.names(self.plane.controller.specs)})

    async def _asked(self, request: Request) -> tuple[Target, Arguments]:
        target = calls.find(self.plane.controller.specs, request.path_params["app"], request.path_params["function"])
        given = await arguments(request)
        if given.parameters and not target.method:
            raise Problem(
                400,
                "'parameters' are for classes, and this is a function.",
                param="parameters",
                code="unknown_parameter",
            )
        bound(signature_of(target.spec, target.method), given)
        return target._replace(variant=calls.variant_of(given.parameters)), given

    def _generates(self, target: Target) -> bool:
        signature = signature_of(target.spec, target.method)
        return signature.generator if signature else target.spec.generator

    async def invoke(self, request: Request) -> Response:
        target, given = await self._asked(request)
        if self._generates(target):
            raise Problem(
                400,
                f"{target.label} is a generator: use /stream, which sends what it yields as it comes.",
                code="is_generator",
            )
        limit = timeout_s(request)
        key = request.headers.get("idempotency-key", "")
        waiting = Waiting(self.plane)
        waiting.submit(target, given.args, given.kwargs, keep=bool(key), key=key)
        if key:  # the answer is kept, so that a second request gets it too
            await waiting.accepted(target, key)
            self._watch(waiting)
        try:
            outcome = await or_gone(request, waiting.done, limit)
        except TimeoutError:
            goes_on = f"It goes on: GET /v1/calls/{ids.show(waiting.call)}." if key else "It was cancelled."
            raise Problem(
                504, f"The call took longer than {limit:g} s. {goes_on}", param="timeout", code="timed_out"
            ) from None
        except ConnectionError:
            return Response(status_code=HUNG_UP)
        finally:
            if key:
                self.plane.unwatch(waiting.call, waiting)
            else:
                waiting.cancel()
        result = await calls.value(outcome, target.label)
        return _call(waiting.call, SUCCEEDED, result)

    def _watch(self, waiting: Waiting) -> None:
        if not self.plane.watch(waiting.call, waiting):
            raise Problem(
                404,
                f"No call {ids.show(waiting.call)} is known: its answer was forgotten, or it never was.",
                code="not_found",
            )

    async def spawn(self, request: Request) -> Response:
        target, given = await self._asked(request)
        if self._generates(target):
            raise Problem(
                400,
                f"{target.label} is a generator: nobody would take what it yields. Use /stream.",
                code="is_generator",
            )
        key = request.headers.get("idempotency-key", "")
        waiting = Waiting(self.plane)
        waiting.submit(target, given.args, given.kwargs, keep=True, key=key)
        await waiting.accepted(target, key)
        id = ids.show(waiting.call)
        return JSONResponse({"call_id": id, "status": self._state(waiting.call)}, 202, {"location": f"/v1/calls/{id}"})

    def _state(self, call: int) -> str:
        """As far as it is known without waiting; empty if it is not known at all."""
        controller = self.plane.controller
        result = controller.results.get(call)
        if result is not None:
            return result.status
        found = controller.calls.get(call)
        return "" if found is None else "PENDING" if found.instance <= 0 else "RUNNING"

    def _known(self, request: Request) -> int:
        try:
            call = ids.parse(request.path_params["id"])
        except UsageError as error:
            raise Problem(400, str(error), param="id", code="invalid_id") from None
        if not self._state(call):
            raise Problem(
                404,
                f"No call {ids.show(call)} is known: its answer was forgotten, or it never was.",
                param="id",
                code="not_found",
            )
        return call

    async def poll(self, request: Request) -> Response:
        call = self._known(request)
        limit = timeout_s(request, 0.0)
        waiting = Waiting(self.plane, call)
        self._watch(waiting)
        try:
            outcome = await or_gone(request, waiting.done, limit if call not in self.plane.controller.results else None)
        except TimeoutError:
            state = self._state(call)
            return JSONResponse({"call_id": ids.show(call), "status": state}, 202, {"retry-after": "1"})
        except ConnectionError:
            return Response(status_code=HUNG_UP)
        finally:
            self.plane.unwatch(call, waiting)
        return await _ended(call, outcome)

    async def cancel(self, request: Request) -> Response:
        call = self._known(request)
        self.plane.feed(e.Cancelled(call, request.query_params.get("terminate") in ("1", "true")))
        return JSONResponse({"call_id": ids.show(call), "status": self._state(call) or "CANCELLED"})

    async def stream(self, request: Request) -> Response:
        target, given = await self._asked(request)
        waiting = Waiting(self.plane)
        waiting.submit(target, given.args, given.kwargs)
        if waiting.done.done():  # refused: an error of its own, not a stream with an error in it
            await calls.value(waiting.done.result(), target.label)
        return events(waiting, target)


def events(waiting: Waiting, target: Target, tell: bool = True) -> Response:
    """What a generator yields (or a function returns) as server-sent events; `[DONE]` stands at the end."""
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no", "x-call-id": ids.show(waiting.call)}
    return StreamingResponse(_events(waiting, target, tell), media_type="text/event-stream", headers=headers)


async def _events(waiting: Waiting, target: Target, tell: bool) -> AsyncIterator[bytes]:
    items = aiter(waiting.items())
    pending: asyncio.Future[bytes] | None = None
    yielded = False
    try:
        while True:
            pending = pending or asyncio.ensure_future(anext(items))
            done, _ = await asyncio.wait({pending}, timeout=PING_S)
            if not done:
                yield b": still here\n\n"  # finds out whether the client is
                continue
            try:
                item = pending.result()
            except StopAsyncIteration:
                break
            pending, yielded = None, True
            yield b"data: " + await calls.item_json(item, target.label) + b"\n\n"
        result = await calls.value(waiting.done.result(), target.label, tell)
        if not yielded and result != b"null":
            yield b"data: " + result + b"\n\n"
    except Problem as problem:
        yield b"data: " + json.dumps(problem.body()).encode() + b"\n\n"
    finally:
        if pending is not None:
            pending.cancel()
        waiting.cancel()
    yield b"data: [DONE]\n\n"


def _call(call: int, status: str, result: bytes) -> Response:
    head = json.dumps({"call_id": ids.show(call), "status": status}).encode()
    return Response(head[:-1] + b', "result": ' + result + b"}", media_type="application/json")


async def _ended(call: int, outcome: Outcome) -> Response:
    """A call that ended, well or not: asking for it went well either way."""
    try:
        return _call(call, SUCCEEDED, await calls.value(outcome, f"Call {ids.show(call)}"))
    except Problem as problem:
        if outcome.status == SUCCEEDED:
            raise
        answer: dict[str, Any] = {"call_id": ids.show(call), "status": outcome.status, **problem.body()}
        return JSONResponse(answer)
