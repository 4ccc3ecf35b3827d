"""How calls end in an instance, and what is told of it."""

from __future__ import annotations

import sys
import traceback

from nubes.drivers.local import payload


def flush() -> None:
    """What a call printed arrives before its result, with or without a newline at the end."""
    sys.stdout.flush()
    sys.stderr.flush()


def failure(error: BaseException) -> bytes:
    """An exception as a payload: the exception itself if it can be pickled, its text and its traceback."""
    text = "".join(traceback.format_exception(error))
    trimmed = error.with_traceback(None)
    try:
        shipped = payload.dumps(trimmed, None, by_value=True)
        payload.loads(shipped)
    except Exception:
        shipped = b""
    return payload.dumps((shipped, f"{type(error).__name__}: {error}", text), None)


def backpressure(error: BaseException) -> str:
    """The callee that pushed back, if that is what the error says."""
    return str(getattr(error, "__nubes_backpressure__", "") or "")
