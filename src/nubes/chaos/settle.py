"""The last look: `python -m nubes.chaos.settle FOLDER SECONDS` fetches every call that was accepted, or may have been.

It writes a journal as every client does, and what is left in the queue and the dict into `left.json`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec

import nubes
from nubes.chaos import journal
from nubes.chaos.evidence import ACCEPTED, Ask, Told
from nubes.chaos.load import DICT, QUEUE, Caller

ONCE_MORE = 500  # answers that were told before, and are asked for again
MOST_LATE = 3  # after so many that were waited for in vain, others are not waited for


def main() -> None:
    folder, within_s = Path(sys.argv[1]), float(sys.argv[2])
    calls, answered = accepted(folder)
    caller = Caller(folder, "last")
    late = 0
    for call in [call for call in calls if call not in answered] + [c for c in calls if c in answered][-ONCE_MORE:]:
        began = time.monotonic()
        caller.fetch(call, within_s if late < MOST_LATE else 1.0)
        late += time.monotonic() - began >= within_s
    queue = nubes.Queue.from_name(QUEUE, create_if_missing=True)
    table = nubes.Dict.from_name(DICT, create_if_missing=True)
    left = {"queue": queue.iterate(), "dict": dict(table.items())}
    (folder / "left.json").write_bytes(msgspec.json.encode(left))


def accepted(folder: Path) -> tuple[list[int], set[int]]:
    """(durable calls that were accepted, or may have been; those that were answered)."""
    calls: dict[int, None] = {}
    asks: dict[tuple[str, int], Ask] = {}
    answered: set[int] = set()
    for path in sorted((folder / "journals").glob("*.jsonl")):
        for record in journal.read(path):
            if isinstance(record, Ask):
                asks[record.client, record.op] = record
                if record.kind == "spawn":
                    calls[record.call] = None
            elif isinstance(record, Told):
                ask = asks.get((record.client, record.op))
                if ask is not None and ask.kind == "spawn" and record.status == ACCEPTED and record.call != ask.call:
                    calls.pop(ask.call, None)
                    calls[record.call] = None
                elif ask is not None and ask.kind == "spawn" and record.status == "REFUSED":
                    calls.pop(ask.call, None)
                elif ask is not None and ask.kind == "fetch" and record.status in ("SUCCEEDED", "FAILED", "CANCELLED"):
                    answered.add(ask.call)
    return list(calls), answered


if __name__ == "__main__":
    main()
