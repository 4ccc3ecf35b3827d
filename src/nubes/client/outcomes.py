"""How calls end: values, and errors as themselves."""

from __future__ import annotations

from typing import Any

from nubes import ids
from nubes.drivers.local import payload
from nubes.functions.events import CANCELLED, SUCCEEDED, TIMED_OUT
from nubes.kernel.errors import (
    CallCancelled,
    CallFailed,
    CallTimeout,
    FunctionExited,
    InstanceDied,
    Overloaded,
    RemoteError,
    Unavailable,
    UsageError,
)  # fmt: skip

LOST = "The control plane went away before the call was answered."
START_AGAIN = "Start it again with `nubes up`, then retry."


class _RemoteTraceback(Exception):
    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return "\n" + self.text


def value(output: bytes) -> Any:
    """The value that a function returned or yielded."""
    made = payload.loads(output) if output else None
    segment = payload.segment_of(output)
    if segment and not payload.is_object(segment):
        payload.discard(segment)  # mapped by now; nobody else will read it
    return made


def outcome(frame: list[Any]) -> Any:
    """The value in a RESULT frame, or its exception: the remote one as itself, with the remote traceback as cause."""
    _, _, status, reason, output, _ = frame
    if status == SUCCEEDED:
        return value(output)
    raise failure(status, reason, output)


def outcome_or_error(frame: list[Any]) -> Any:
    """The value in a RESULT frame, or the exception itself."""
    try:
        return outcome(frame)
    except Exception as error:
        return error


def not_ended(call: int) -> CallTimeout:
    """The error of one who has waited for a spawned call as long as was allowed."""
    return CallTimeout(f"Call {ids.show(call)} has not ended yet.", "It goes on; ask again later.")


def yields() -> UsageError:
    """The error of one who called a generator for its result."""
    return UsageError("The function yields items rather than return one result.", "Call it with .remote_gen().")


def failure(status: str, reason: str, output: bytes) -> Exception:
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
    return _raised(*payload.loads(output))


def _raised(shipped: bytes, summary: str, text: str) -> Exception:
    """What a function raised; what would end this process too, if it were raised here, as an error that tells of it."""
    error: BaseException
    try:
        error = payload.loads(shipped) if shipped else RemoteError(summary)
    except Exception:
        error = RemoteError(summary, "Its class cannot be imported here.")
    if isinstance(error, SystemExit):
        error = _exited(error.code)
    elif not isinstance(error, Exception):
        error = RemoteError(f"The function raised {summary.rstrip(': ')}.")
    error.__cause__ = _RemoteTraceback(text)
    return error


def _exited(code: Any) -> FunctionExited:
    """The same code that a program which ends like this has."""
    number = code if isinstance(code, int) else 0 if code is None else 1
    given = "" if code is None else repr(code)
    return FunctionExited(f"The function called sys.exit({given}): it has no result.", "", number)
