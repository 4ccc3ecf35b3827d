"""Results that were measured and kept, in a small file without dates, so that it changes only with what they say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from nubes.papers.claims import Result

PATH = Path(__file__).with_name("results.json")


def recorded(path: Path = PATH) -> dict[str, list[Result]]:
    """What was recorded, by system."""
    if not path.exists():
        return {}
    return msgspec.json.decode(path.read_bytes(), type=dict[str, list[Result]])


def record(results: Sequence[Result], path: Path = PATH) -> None:
    """Keeps the results of one or more systems, in place of what was recorded of them before."""
    kept = recorded(path)
    for id in {result.id for result in results}:
        kept[id] = [result for result in results if result.id == id]
    encoded = msgspec.json.encode({id: kept[id] for id in sorted(kept)})
    path.write_bytes(msgspec.json.format(encoded, indent=1) + b"\n")
