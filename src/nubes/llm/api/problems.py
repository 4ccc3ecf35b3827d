"""Errors as HTTP answers, in OpenAI's form and in Anthropic's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from nubes.kernel.errors import NotFound, Unavailable, UsageError
from nubes.llm.errors import ContextTooLong

RETRY_S = 1  # when to come again after an overload


class Problem(Exception):
    """An answer that is an error. `type` says whose fault it is, `code` which one, `param` in which field."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, type: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.type = type or _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.headers = headers or {}


_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 503: "overloaded_error"}


def unsupported(field: str, hint: str = "") -> Problem:
    """The answer to a field that is known and cannot be done."""
    return Problem(400, f"{field!r} is not supported. {hint}".rstrip(), field, "unsupported_parameter")


def invalid(field: str, message: str) -> Problem:
    return Problem(400, message, field, "invalid_value")


def of_error(error: BaseException, request_id: str) -> Problem:
    """The answer for anything raised. What is not the user's doing says nothing of the inside: the log does."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, ContextTooLong):
        return Problem(400, str(error), code="context_length_exceeded")
    if isinstance(error, UsageError):
        return Problem(400, str(error), code="invalid_value")
    if isinstance(error, NotFound):
        return Problem(404, str(error), code="not_found")
    if isinstance(error, Unavailable):
        return overloaded(str(error))
    return Problem(500, f"The engine failed. The server's log says why, under {request_id}.", code="engine_failed")


def overloaded(message: str) -> Problem:
    return Problem(503, message, code="overloaded", headers={"retry-after": str(RETRY_S)})


class Dialect(NamedTuple):
    """How an API writes its errors."""

    status: Callable[[Problem], int]
    body: Callable[[Problem, str], bytes]  # with the request's id
    late: Callable[[Problem, str], bytes]  # in the middle of a stream: an event, and the end


def _openai(problem: Problem, request_id: str) -> bytes:
    error = {"message": problem.message, "type": problem.type, "param": problem.param, "code": problem.code}
    return msgspec.json.encode({"error": error})


def _anthropic(problem: Problem, request_id: str) -> bytes:
    kind = _ANTHROPIC.get(problem.status, "invalid_request_error" if problem.status < 500 else "api_error")
    error: dict[str, Any] = {"type": kind, "message": problem.message}
    return msgspec.json.encode({"type": "error", "error": error, "request_id": request_id})


_ANTHROPIC = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip

OPENAI = Dialect(
    status=lambda problem: problem.status,
    body=_openai,
    late=lambda problem, request_id: b"data: " + _openai(problem, request_id) + b"\n\ndata: [DONE]\n\n",
)
ANTHROPIC = Dialect(
    status=lambda problem: 529 if problem.status == 503 else problem.status,  # theirs for an overload
    body=_anthropic,
    late=lambda problem, request_id: b"event: error\ndata: " + _anthropic(problem, request_id) + b"\n\n",
)
