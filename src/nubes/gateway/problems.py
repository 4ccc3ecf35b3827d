"""Errors as HTTP answers: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import pickle
from typing import Any

from nubes import client
from nubes.drivers.local import payload
from nubes.gateway import plain
from nubes.kernel import errors

RETRY_S = 1  # when to come again after a queue was full


class Problem(Exception):
    """An answer that is an error. `type` says whose fault it is, `code` which one, `param` where."""

    def __init__(
        self, status: int, message: str, type: str = "", param: str | None = None, code: str = "",
        headers: dict[str, str] | None = None, more: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type or _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.param = param
        self.code = code
        self.headers = headers or {}
        self.more = more or {}

    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code or None,
                **self.more,
            }
        }


_TYPES = {
    401: "authentication_error", 404: "not_found_error", 405: "invalid_request_error", 409: "conflict_error",
    429: "overloaded_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip

# The first that fits says it.
_STATUS: tuple[tuple[type[errors.NubesError], int, str], ...] = (
    (errors.Overloaded, 429, "queue_full"),
    (errors.Unavailable, 503, "unavailable"),
    (errors.NotFound, 404, "not_found"),
    (errors.UsageError, 400, "invalid_request"),
    (errors.CallTimeout, 504, "timed_out"),
    (errors.CallCancelled, 409, "cancelled"),
    (errors.InstanceDied, 500, "instance_died"),
    (errors.CallFailed, 500, "call_failed"),
    (errors.NubesError, 500, "failed"),
)


def of_error(error: errors.NubesError) -> Problem:
    """The answer for an error of nubes."""
    status, code = next((status, code) for kind, status, code in _STATUS if isinstance(error, kind))
    headers = {"retry-after": str(RETRY_S)} if status in (429, 503) else {}
    return Problem(status, str(error), code=code, headers=headers)


def of_outcome(status: str, reason: str, output: bytes, tell: bool = True) -> Problem:
    """The answer for a call that failed. What the function raised is shown, with its traceback, if `tell`."""
    if reason or not output:
        failure = client.failure(status, reason, b"")
        assert isinstance(failure, errors.NubesError)
        return of_error(failure)
    if not tell:
        return Problem(500, "The function failed.", "function_error", code="function_error")
    try:
        _, summary, text = payload.load_mapped(output, plain.unpickle)[0]
    except (pickle.UnpicklingError, ValueError, OSError):
        summary, text = "The function failed.", ""
    return Problem(500, summary, "function_error", code=summary.partition(":")[0], more={"traceback": text})
