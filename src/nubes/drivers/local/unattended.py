"""What the log of a function says about a call that failed while nobody waited for its answer."""

from __future__ import annotations

from nubes import ids
from nubes.drivers.local import plain
from nubes.functions.events import INNER_CALLS


def report(call: int, status: str, reason: str, output: bytes) -> str:
    """Which call it was and how it ended, with the traceback if the function raised."""
    who = "A scheduled call" if call >= INNER_CALLS else "A spawned call"
    return f"{who} ended as {status}: {ids.show(call)}\n{reason or _traceback(output) or 'It gave no reason.'}"


def _traceback(output: bytes) -> str:
    """The text of an exception's payload. The exception itself stays packed: its class is the user's, not ours."""
    if not output:
        return ""
    _, summary, text = plain.loads(output)
    return str(text or summary)
