"""What a storm is made of, as plain data: faults at logical points, schedules of them, and what they broke."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from nubes.functions.events import INNER_CALLS
from nubes.kernel.errors import UsageError

KILL, MACHINE, RESTART, DELAY, CLOCK = "kill", "machine", "restart", "delay", "clock"
KINDS = (KILL, DELAY, CLOCK, RESTART, MACHINE)  # the simplest first
DELAYS_S = (1.0, 3.0, 10.0, 30.0)
STEPS_S = (60.0, 3600.0, 86_400.0, -60.0, -3600.0)
REST = "comes_to_rest"  # what is checked beside the app's own invariants: every day ends
SCENARIO = ""  # stands where the call of a function would


class Fault(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something happens at a point: in one attempt of a call, once so many of its operations are done.

    `kind` is `kill` (of the instance that runs it), `machine` (that instance's, which is lost), `restart` (of the
    control plane), `delay` (the next operation comes `seconds` later) or `clock` (steps by `seconds`). `call` says
    which: "3" is the third call that the scenario made, "3/1" the first that this one made, "3:2/1" the first that its
    second attempt made, "@1" the first that a schedule made, and "" the scenario itself.
    """

    kind: str
    call: str = SCENARIO
    function: str = ""
    attempt: int = 1
    after: int = 0
    seconds: float = 0.0

    @property
    def point(self) -> tuple[str, str, int, int]:
        return self.call, self.function, self.attempt, self.after


class Schedule(msgspec.Struct, frozen=True, omit_defaults=True):
    """One day: `seed` is what its functions draw chance from, `breaks` the invariant that does not hold then."""

    scenario: str
    seed: int = 0
    faults: tuple[Fault, ...] = ()
    breaks: str = ""
    message: str = ""


class Outcome(msgspec.Struct, frozen=True):
    """How a day ended: the faults that came about, and the first thing that did not hold. `stopped`: what the
    scenario raised, which alone is no failure: a client may give up."""

    faults: tuple[Fault, ...] = ()
    breaks: str = ""
    message: str = ""
    stopped: str = ""
    seconds: float = 0.0
    operations: int = 0
    story: tuple[tuple[float, int, str], ...] = ()  # (time, depth, what), if it was asked for
    order: tuple[tuple[int, str, int, int], ...] = ()  # of all points, see `nubes.storm.turns.Place`; with the story


def child(parent: int, attempt: int, index: int) -> int:
    """The id of the call that an attempt of `parent` (0: the scenario) made as its `index`th."""
    text = f"{parent}.{attempt}.{index}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 3


def call_id(path: str) -> int:
    """The id of a call by its path, see `Fault`. Raises `UsageError`."""
    try:
        if path.startswith("@"):
            head, _, path = path[1:].partition("/")
            number, _, tried = head.partition(":")
            id, attempt = INNER_CALLS + int(number), int(tried or 1)
        else:
            id, attempt = 0, 1
        for step in filter(None, path.split("/")):
            number, _, tried = step.partition(":")
            id, attempt = child(id, attempt, int(number)), int(tried or 1)
    except ValueError:
        raise UsageError(f"{path!r} in the schedule names no call.", 'It looks like "3" or "3:2/1".') from None
    return id


def beneath(path: str, attempt: int, index: int) -> str:
    """The path of the call that an attempt of the call at `path` made as its `index`th."""
    if not path:
        return str(index)
    return f"{path}:{attempt}/{index}" if attempt > 1 else f"{path}/{index}"


def save(schedule: Schedule, path: Path) -> None:
    """Writes a schedule as JSON. Raises `UsageError`."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(schedule), indent=2) + b"\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.", "Choose another file with --save.") from None


def load(path: Path) -> Schedule:
    """Reads a schedule. Raises `UsageError`."""
    try:
        schedule = msgspec.json.decode(path.read_bytes(), type=Schedule)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", "Give a file that --save wrote.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no schedule: {error}.", "Give a file that --save wrote.") from None
    for fault in schedule.faults:
        if fault.kind not in KINDS:
            raise UsageError(f"{path} has a fault of kind {fault.kind!r}.", f"There are: {', '.join(KINDS)}.")
        call_id(fault.call)
    return schedule
