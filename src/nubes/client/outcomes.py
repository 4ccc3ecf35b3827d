"""How calls end: values, and errors as themselves."""

from __future__ import annotations

from typing import Any

from nubes.drivers.local import payload
from nubes.functions.events import CANCELLED, SUCCEEDED, TIMED_OUT
from nubes.kernel.errors import (
    CallCancelled,
    CallFailed,
    CallTimeout,
    InstanceDied,
    Overloaded,
    RemoteError,
    Unavailable,
)  # fmt: skip


class _RemoteTraceback(Exception):
    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return "\n" + self.text


def outcome(status: str, reason: str, output: bytes) -> Any:
    """The value of a call that ended, or its exception: the remote one as itself, with the remote traceback as
    cause."""
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


def mapped(frame: list[Any], return_exceptions: bool) -> Any:
    try:
        return outcome(frame[2], frame[3], frame[4])
    except Exception as error:
        if return_exceptions:
            return error
        raise
