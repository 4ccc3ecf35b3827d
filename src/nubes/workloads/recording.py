"""Recordings: the log of a live nubes as a workload, with the policies that were live and what was measured.

A log holds events only. Commands follow from events, so a controller of its own is fed the log, and its commands tell
which instance took which call, and what each instance was forked from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from nubes.drivers.local import state
from nubes.functions import events as e
from nubes.functions.models import TreeTimes
from nubes.functions.state import BY_FUNCTION
from nubes.kernel.errors import UsageError
from nubes.kernel.log import Log
from nubes.kernel.message import Codec
from nubes.workloads.fold import Fold
from nubes.workloads.outcome import Outcome
from nubes.workloads.workload import Workload

Timed = tuple[float, Any]


@dataclass(eq=False)
class Recording:
    """A recorded workload. `controls` are the events that shaped the run from outside, other than calls."""

    workload: Workload
    measured: Outcome
    controls: list[Timed]
    policies: dict[str, str]  # seam -> what was live at the end
    left_out: int  # calls that were cancelled, refused, or had no answer yet

    def out_of_sample(self) -> Workload:
        """The workload with start times that are not each start's own, but those of the function's next start.

        Run under what was live, it would otherwise come out as measured whatever the simulator is worth.
        """
        import numpy as np

        tree = self.workload.tree or TreeTimes()
        return replace(
            self.workload,
            start_s=tuple(np.roll(samples, -1) for samples in self.workload.start_s),
            tree=replace(
                tree,
                shared_s=tuple(samples[1:] + samples[:1] for samples in tree.shared_s),
                own_s=tuple(samples[1:] + samples[:1] for samples in tree.own_s),
                grown={kind: samples[1:] + samples[:1] for kind, samples in tree.grown.items()},
            ),
        )

    def without_policies(self, capacity: bool = True, seams: Sequence[str] = BY_FUNCTION) -> list[Timed]:
        """The controls for a replay under other policies: at `seams` those that functions chose give way too.

        Of the seams where functions may choose, those that are not in `seams` stay as they were. Without `capacity`,
        what the machine had to give is left out as well.
        """
        stays = [seam for seam in BY_FUNCTION if seam not in seams]
        return [
            (at, _without_policy(event, seams))
            for at, event in self.controls
            if not (isinstance(event, e.PolicySet) and event.seam not in stays)
            and not (isinstance(event, e.MachineReady) and not capacity)
        ]


def is_recording(folder: Path) -> bool:
    return _log_folder(folder) is not None


def events_of(folder: Path) -> list[Timed]:
    """The events of a log, or of the data folder that holds one. Raises `UsageError` if its beginning is gone."""
    where = _log_folder(folder)
    if where is None:
        raise UsageError(f"{folder} holds no log.", "Name the data folder of a nubes that ran.")
    first = state.first(where)
    if first:
        raise UsageError(
            f"The log in {where} starts at record {first}; what came before is gone.",
            "Record anew: start nubes with an empty data folder.",
        )
    decode = Codec(e.EVENTS).decode
    return [decode(record) for record in state.read(where)]


def write_events(folder: Path, events: Iterable[Timed]) -> None:
    """Stores (time, event) pairs, as a simulation records them, as a log that `events_of` reads."""
    encode = Codec(e.EVENTS).encode
    log = Log(folder / "log")
    for at, event in events:
        log.append(encode(at, event))
    log.close()


def load_recording(folder: Path, name: str = "") -> Recording:
    """Reads the log of a live nubes from its data folder (or the log's own). `UsageError` if nothing was called."""
    return recording_of(events_of(folder), name or folder.name)


def _log_folder(folder: Path) -> Path | None:
    return next((f for f in (folder, folder / "log") if state.is_log(f)), None)


def recording_of(events: Iterable[Timed], name: str) -> Recording:
    """Folds (time, event) pairs into a recording."""
    fold = Fold()
    for now, event in events:
        fold.step(now, event)
    return Recording(*fold.recorded(name))


def _without_policy(event: Any, seams: Sequence[str]) -> Any:
    if isinstance(event, e.Deployed):
        none = {seam.replace("-", "_"): "" for seam in seams}
        specs = tuple(msgspec.structs.replace(spec, **none) for spec in event.functions)
        return msgspec.structs.replace(event, functions=specs)
    return event
