"""What a run leaves to be judged: what clients asked and were told, what ran, what the log says, what was broken.

All times are seconds of the machine's monotonic clock, which no fault here moves.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

# How an operation of a client ended, beside the statuses of calls.
ACCEPTED = "ACCEPTED"  # a durable call was
DONE = "DONE"  # a dict or queue did as it was asked
REFUSED = "REFUSED"  # certainly not accepted
UNKNOWN = "UNKNOWN"  # the connection ended before the answer
NOT_YET = "NOT_YET"  # no answer within the time that the client would wait
NOT_FOUND = "NOT_FOUND"  # no such call is known

CALLS = ("remote", "map", "spawn")  # operations that make a call


@dataclass(frozen=True)
class Ask:
    """What a client was about to ask, written down before it did. `token` names the work; `call` is its id."""

    client: str
    op: int  # of this client
    at_s: float
    kind: str  # of CALLS, or fetch, cancel, put, take, set, look
    call: int = 0
    function: str = ""
    token: str = ""
    key: str = ""


@dataclass(frozen=True)
class Told:
    """What a client was told in answer, or that it was told nothing."""

    client: str
    op: int
    at_s: float
    status: str
    said: str = ""
    call: int = 0  # the one that a durable call was accepted as


@dataclass(frozen=True)
class Run:
    """One execution, as the function itself noted it. `end_s` is 0 if it never came to its end."""

    token: str
    pid: int
    begin_s: float
    end_s: float = 0.0


@dataclass
class Logged:
    """A call in the log: what was submitted, and what came of it."""

    call: int
    function: str
    keep: bool
    key: str
    answers: list[tuple[str, str]] = field(default_factory=list)  # (status, said); "" for what the log does not keep
    losses: int = 0  # instances lost under it
    restarts: int = 0  # of the control plane, while it was under way
    pending: bool = True


@dataclass(frozen=True)
class Broken:
    """A fault that was done, and until when it lasted."""

    kind: str
    at_s: float
    until_s: float
    what: str = ""


@dataclass
class Evidence:
    asks: list[Ask] = field(default_factory=list)
    tolds: list[Told] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    log: dict[int, Logged] = field(default_factory=dict)
    faults: list[Broken] = field(default_factory=list)
    app: str = "chaos"
    queue_left: list[str] = field(default_factory=list)  # at the end, in order
    dict_left: dict[str, str] = field(default_factory=dict)
    left_over: list[str] = field(default_factory=list)  # processes, folders and groups after everything was shut down
    ended_alone: list[str] = field(default_factory=list)  # processes that ended though nobody ended them


def expected(function: str, token: str) -> tuple[str, str]:
    """(status, said) of the right answer to a call."""
    if function.endswith("/fail"):
        return "FAILED", f"ValueError: {token}"
    if function.endswith("/large"):
        return "SUCCEEDED", shown(large(token))
    return "SUCCEEDED", answer(token)


def answer(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()[:12]


def large(token: str) -> bytes:
    """Too large for the log."""
    return hashlib.sha256(token.encode()).digest() * 4096


def shown(value: object) -> str:
    """A value as a short text."""
    return f"{len(value)} bytes {hashlib.sha256(value).hexdigest()[:12]}" if isinstance(value, bytes) else str(value)
