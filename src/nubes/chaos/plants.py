"""Losses on purpose, to show that the auditor notices them: each really changes what a run left behind.

Those of the log rewrite its files: whole records are taken out, or put in, and the rest stays byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from nubes.chaos.evidence import ACCEPTED
from nubes.drivers.local import payload
from nubes.functions import events as e
from nubes.kernel import frames
from nubes.kernel.errors import UsageError
from nubes.kernel.message import Codec

Event = tuple[float, Any]
EARLY = "acknowledge-early"  # is planted in the control plane itself: see `early`


def check(name: str) -> None:
    """Raises `UsageError` if there is no such loss."""
    if name not in PLANTS and name != EARLY:
        raise UsageError(f"There is no loss {name!r} to plant.", f"There are: {', '.join((*PLANTS, EARLY))}.")


def plant(name: str, folder: Path) -> None:
    """Does it to the run in `folder`. Raises `UsageError` if there is nothing to lose."""
    if name == EARLY:
        return
    if not any((folder / "data" / "log").glob("*.log")):
        raise UsageError("The log is in a database: nothing can be taken out of it.", "Run without --database.")
    PLANTS[name][0](folder)


# -- in the log --------------------------------------------------------------------------------------------------------


def drop_record(folder: Path) -> None:
    """A call that was accepted is not in the log."""
    lost = _some_accepted(folder)
    _rewrite(folder, lambda at, event: () if isinstance(event, e.Submitted) and event.call == lost else ((at, event),))


def forget_answer(folder: Path) -> None:
    """The answer of a call that was told it is not in the log."""
    lost = _some_accepted(folder)
    _rewrite(folder, lambda at, event: () if isinstance(event, e.Finished) and event.call == lost else ((at, event),))


def lose_tail(folder: Path) -> None:
    """The last tenth of the log never reached the disk, as if it had been acknowledged before it was written."""
    segments = sorted((folder / "data" / "log").glob("*.log"))
    raw = segments[-1].read_bytes()
    ends = [end for _, end in frames.frames(raw)]
    segments[-1].write_bytes(raw[: ends[int(len(ends) * 0.9)]])


def double_answer(folder: Path) -> None:
    """The log says another answer than was told."""
    lost = _some_accepted(folder)

    def other(at: float, event: Any) -> tuple[Event, ...]:
        if isinstance(event, e.Finished) and event.call == lost:
            event = msgspec.structs.replace(event, ok=True, output=payload.dumps("another answer", None))
        return ((at, event),)

    _rewrite(folder, other)


def phantom(folder: Path) -> None:
    """The log ends with a call that nobody made."""
    codec = Codec(e.EVENTS)
    path = max((folder / "data" / "log").glob("*.log"))
    made = e.Submitted(1, "chaos/work", keep=True, input=payload.NO_ARGUMENTS)
    at, _ = codec.decode([body for body, _ in frames.frames(path.read_bytes())][-1])
    with path.open("ab") as file:
        file.write(frames.frame(codec.encode(at, made)))


# -- elsewhere ---------------------------------------------------------------------------------------------------------


def run_again(folder: Path) -> None:
    """A call ran once more than its log explains."""
    path, lines = _runs(folder)
    path.write_text("\n".join([*lines, *lines[:2], ""]))


def never_run(folder: Path) -> None:
    """A call was answered, and its execution is not there."""
    path, lines = _runs(folder)
    path.write_text("\n".join([*lines[2:], ""]))


def lose_item(folder: Path) -> None:
    """Items that were put into the queue are neither taken nor there."""
    tolds = [one for one in _records(folder) if one["kind"] == "take" and one["status"] == "DONE"]
    _edit(folder, {(one["client"], one["op"]): {"status": "NOT_YET", "said": ""} for one in tolds[-20:]})


def twice_taken(folder: Path) -> None:
    """An item was given to two takers."""
    takes = [one for one in _records(folder) if one["kind"] == "take" and one["status"] == "DONE"]
    _edit(folder, {(takes[-1]["client"], takes[-1]["op"]): {"said": takes[0]["said"]}})


def stale_dict(folder: Path) -> None:
    """The dict shows nothing of what was set."""
    path = folder / "left.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, "dict": {}}))


PLANTS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {  # name -> (what does it, the findings it makes)
    "drop-record": (drop_record, ("lost", "not-the-log")),
    "forget-answer": (forget_answer, ("lost", "not-the-log")),
    "lose-tail": (lose_tail, ("lost", "not-the-log")),
    "double-answer": (double_answer, ("not-the-log",)),
    "phantom": (phantom, ("not-asked",)),
    "run-again": (run_again, ("run-too-often",)),
    "never-run": (never_run, ("not-run",)),
    "lose-item": (lose_item, ("queue-lost",)),
    "twice-taken": (twice_taken, ("queue-twice",)),
    "stale-dict": (stale_dict, ("dict-wrong",)),
}


# -- what they change --------------------------------------------------------------------------------------------------


def _rewrite(folder: Path, change: Callable[[float, Any], tuple[Event, ...]]) -> None:
    """Puts what `change` makes of each record in its place, in all segments; snapshots go, they would say it anew."""
    codec, count = Codec(e.EVENTS), 0
    place = folder / "data" / "log"
    for path in place.glob("*.snap"):
        path.unlink()
    for path in sorted(place.glob("*.log")):
        made = [frames.SEGMENT]
        first = count
        for body, _ in frames.frames(path.read_bytes()):
            at, event = codec.decode(body)
            for changed in change(at, event):
                made.append(frames.frame(body if changed[1] is event else codec.encode(*changed)))
                count += 1
        path.unlink()
        (place / f"{first:016d}.log").write_bytes(b"".join(made))


def _some_accepted(folder: Path) -> int:
    """A durable call that was accepted under its own id, ran, and was told its answer."""
    records = list(_records(folder))
    told = {one["call"] for one in records if one["kind"] == "fetch" and one["status"] == "SUCCEEDED"}
    accepted = [one for one in records if one["kind"] == "spawn" and one["status"] == ACCEPTED]
    for one in accepted[len(accepted) // 2 :] + accepted:
        if one["accepted"] == one["call"] and one["call"] in told and one["function"] == "chaos/work":
            return int(one["call"])
    raise UsageError("No call was accepted and answered: there is nothing to lose.", "Run for longer.")


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    """Every operation that ended: what was asked, and what was told of it."""
    for path in sorted((folder / "journals").glob("*.jsonl")):
        asks: dict[int, dict[str, Any]] = {}
        for line in path.read_text().splitlines():
            what, record = json.loads(line)
            if what == "ask":
                asks[record["op"]] = record
            elif record["op"] in asks:
                yield {
                    **asks[record["op"]],
                    "status": record["status"],
                    "said": record["said"],
                    "accepted": record["call"],
                }


def _edit(folder: Path, changes: dict[tuple[str, int], dict[str, str]]) -> None:
    """Changes what clients were told."""
    for path in sorted((folder / "journals").glob("*.jsonl")):
        lines = []
        for line in path.read_text().splitlines():
            what, record = json.loads(line)
            if what == "told":
                record |= changes.get((record["client"], record["op"]), {})
            lines.append(json.dumps([what, record]))
        path.write_text("\n".join([*lines, ""]))


def _runs(folder: Path) -> tuple[Path, list[str]]:
    """A ledger that begins with a whole execution, and its lines."""
    for path in sorted((folder / "ledger").glob("*.runs")):
        lines = path.read_text().splitlines()
        whole = len(lines) > 1 and [json.loads(line)[1] for line in lines[:2]] == ["begin", "end"]
        if whole and json.loads(lines[0])[0] == json.loads(lines[1])[0]:
            return path, lines
    raise UsageError("No call ran to its end: there is nothing to lose.", "Run for longer.")
