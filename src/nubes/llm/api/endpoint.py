"""One HTTP request from its body to its answer: whole or as a stream, with its errors, until the client leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, Generic, TypeVar

from starlette.types import Receive, Scope, Send

from nubes.llm.api.fields import Body, decode
from nubes.llm.api.problems import OPENAI, Dialect, Problem, of_error
from nubes.llm.api.service import Call, Service

log = logging.getLogger("nubes.llm")

MAX_BODY_BYTES = 32 << 20

T = TypeVar("T", bound=Body)
Answer = bytes | AsyncGenerator[bytes, None]  # a JSON body, or events


class Endpoint(Generic[T]):
    """An ASGI app that decodes a body, has it answered, and stops the work at once when the client hangs up."""

    def __init__(
        self, service: Service, kind: type[T], answer: Callable[[Service, Call, T], Awaitable[Answer]],
        dialect: Dialect = OPENAI, metered: bool = True,
    ) -> None:  # fmt: skip
        self.service = service
        self.kind = kind
        self.answer = answer
        self.dialect = dialect
        self.metered = metered and service.quotas is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call: Call = scope["state"]["call"]
        try:
            body = await body_of(receive)
        except ConnectionError:
            return
        except Problem as problem:
            return await self._refuse(problem, call, send)
        work = asyncio.ensure_future(self._work(call, body, send))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not work.done():
                work.cancel()
            with suppress(asyncio.CancelledError):
                await work

    async def _work(self, call: Call, body: bytes, send: Send) -> None:
        try:
            if self.metered and self.service.quotas is not None:
                call.headers |= self.service.quotas.admit(call.user)
            asked, strangers = decode(body, self.kind)
            self.service.warn(call, strangers)
            answer = await self.answer(self.service, call, asked)
            if isinstance(answer, bytes):
                await respond(send, 200, answer, call.headers)
                return
            begun = False
            async with aclosing(answer):
                try:
                    async for chunk in answer:
                        if not begun:  # up to here an error still has a status of its own
                            await send(_start(200, b"text/event-stream", _STREAM | call.headers))
                            begun = True
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
                except Exception as error:
                    if not begun:
                        raise
                    problem = self._problem(error, call)
                    late = self.dialect.late(problem, call.request_id)
                    await send({"type": "http.response.body", "body": late, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except Exception as error:
            await self._refuse(self._problem(error, call), call, send)

    def _problem(self, error: Exception, call: Call) -> Problem:
        problem = of_error(error, call.request_id)
        if problem.status == 500:
            log.error("request %s failed", call.request_id, exc_info=error)
        return problem

    async def _refuse(self, problem: Problem, call: Call, send: Send) -> None:
        await refuse(send, problem, self.dialect, call)


_STREAM = {"cache-control": "no-cache", "x-accel-buffering": "no"}


async def body_of(receive: Receive) -> bytes:
    """The whole body. Raises `Problem` if it is too large, `ConnectionError` if the client leaves."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client hung up")
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise Problem(413, f"The body is larger than {MAX_BODY_BYTES >> 20} MiB.", code="body_too_large")
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def refuse(send: Send, problem: Problem, dialect: Dialect, call: Call) -> None:
    """Answers with an error."""
    headers = call.headers | problem.headers
    await respond(send, dialect.status(problem), dialect.body(problem, call.request_id), headers)


async def respond(
    send: Send, status: int, body: bytes, headers: dict[str, str], kind: bytes = b"application/json"
) -> None:
    """Answers with a whole body."""
    await send(_start(status, kind, headers | {"content-length": str(len(body))}))
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _start(status: int, kind: bytes, headers: dict[str, str]) -> dict[str, Any]:
    raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind), *raw]}
