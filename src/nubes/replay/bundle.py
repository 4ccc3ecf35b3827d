"""Time-travel bundles: the log of a cloud up to a moment, in one file that opens anywhere.

A bundle is a zip archive: `about.json`, `events.log` (a segment as in the data folder) and, if the beginning of the log
is gone, `state`: the fold of what came before. Secrets are not in it: the log has their names only. The arguments and
results of spawned calls, and the variables that functions were declared with, are, unless it was made without data.
"""

from __future__ import annotations

import io
import json
import pickle
import platform
import zipfile
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import msgspec

from nubes import __version__
from nubes.functions import events as e
from nubes.functions.controller import Functions
from nubes.kernel.disk import DISK, is_numbered
from nubes.kernel.errors import UsageError
from nubes.kernel.fingerprint import fingerprint
from nubes.kernel.frames import SEGMENT, frame, frames, state_in
from nubes.kernel.message import Codec
from nubes.kernel.policy import ENTRY_POINTS
from nubes.replay.opened import Opened

FORMAT = 1
_PLAIN = {"set", "frozenset", "bytearray", "list", "dict", "int", "float", "str", "tuple", "deque", "OrderedDict",
          "defaultdict", "Counter"}  # fmt: skip
_codec = Codec(e.EVENTS)


def write(
    file: Path, records: Iterable[bytes], at: int | None = None, *, first: int = 0, state: bytes = b"",
    wrong: str = "", data: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Puts records from number `first` on into a bundle, to be opened before record `at` (default: behind the last).

    `state` is the pickled fold of what came before `first`. Returns what `about.json` says.
    """
    kept = list(records)
    if not data:
        kept = [_without_data(record) for record in kept]
    at = first + len(kept) if at is None else at
    if not first <= at <= first + len(kept):
        raise UsageError(f"There is no record {at}.", f"There are records {first} to {first + len(kept) - 1}.")
    opened = Opened(_fold_from(state), first, kept)
    opened.go(at)
    about = {
        "format": FORMAT, "nubes": __version__, "python": platform.python_version(), "first": first,
        "count": first + len(kept), "at": at, "wrong": wrong, "data": data, "hash": fingerprint(opened.state),
        "policies": {seam: policy.text for seam, policy in opened.state.policies.items()},
        "packages": {p.dist.name: p.dist.version for p in entry_points(group=ENTRY_POINTS) if p.dist is not None},
    }  # fmt: skip
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("about.json", json.dumps(about, indent=2))
        archive.writestr("events.log", SEGMENT + b"".join(map(frame, kept)))
        if first:
            archive.writestr("state", state)
    return about


def of_folder(folder: Path, file: Path, at: int | None = None, *, call: int = 0, data: bool = True) -> dict[str, Any]:
    """A bundle of a data folder, whether or not its control plane runs; `call`: before what was last decided on it."""
    from nubes.drivers.local import state as kept

    where = folder / "log"
    if not kept.is_log(where):
        raise UsageError(f"{folder} holds no log.", "Name the data folder of a nubes that ran, with --data.")
    first = kept.first(where)
    records = list(kept.read(where))
    state = b""
    if first:
        covered, state = _state(where)
        if not first <= covered <= first + len(records):
            raise UsageError(
                f"The log in {where} begins at record {first}, and no state leads up to it.", "Nothing can be shown."
            )
        records, first = records[covered - first :], covered
    if call:
        at = _last_decision(records, first, state, call)
    return write(file, records, at, first=first, state=state, data=data)


def load(file: Path) -> tuple[Opened, dict[str, Any]]:
    """Opens a bundle where it says. Raises `UsageError` if it is none, or was made by a version that is too new."""
    try:
        with zipfile.ZipFile(file) as archive:
            about: dict[str, Any] = json.loads(archive.read("about.json"))
            raw = archive.read("events.log")
            state = archive.read("state") if about["first"] else b""
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UsageError(f"{file} is no bundle: {error}.", "Make one with `nubes bundle -o FILE`.") from None
    if about["format"] > FORMAT:
        raise UsageError(f"{file} was made by nubes {about['nubes']}.", "Open it with that version, or a newer one.")
    records = [body for body, _ in frames(raw)]
    if about["first"] + len(records) != about["count"]:
        raise UsageError(f"{file} is damaged: it has {len(records)} of its records.", "Copy it once more.")
    opened = Opened(_fold_from(state), about["first"], records)
    opened.go(about["at"])
    return opened, about


def _state(where: Path) -> tuple[int, bytes]:
    """The newest state in a log's folder that is whole, pickled, and how many records it covers."""
    for name in sorted((name for name in DISK.names(where) if is_numbered(name, ".snap")), reverse=True):
        found = state_in(DISK.read(where / name))
        if found is not None:
            return int(name.partition(".")[0]), found.partition(b"\n")[2]
    return -1, b""


def _fold_from(state: bytes) -> Functions:
    return _Plain.load_state(state) if state else Functions()


def _last_decision(records: list[bytes], first: int, state: bytes, call: int) -> int:
    """The number of the last record that made the controller start something for a call, or give it to an instance."""
    opened = Opened(_fold_from(state), first, records)
    found = -1
    while opened.event is not None:
        number, event = opened.number, opened.event
        mine = getattr(event, "call", 0) == call
        for command in opened.advance():
            if mine or (isinstance(command, e.Dispatch) and call in command.calls):
                found = number
    if found < 0:
        raise UsageError("Nothing was decided on that call in what is left of the log.", "`nubes why` shows a call.")
    return found


def _without_data(record: bytes) -> bytes:
    now, event = _codec.decode(record)
    if isinstance(event, e.Submitted | e.Finished):
        field = "input" if isinstance(event, e.Submitted) else "output"
        event = msgspec.structs.replace(event, **{field: b""})
    elif isinstance(event, e.Deployed):
        hidden = (msgspec.structs.replace(spec, env=dict.fromkeys(spec.env, "")) for spec in event.functions)
        event = msgspec.structs.replace(event, functions=tuple(hidden))
    return _codec.encode(now, event)


class _Plain(pickle.Unpickler):
    """Reads a state made of nubes' own classes and plain data: a bundle from elsewhere runs no code of its own."""

    @staticmethod
    def load_state(state: bytes) -> Functions:
        found = _Plain(io.BytesIO(state)).load()
        if not isinstance(found, Functions):
            raise UsageError("The state in this bundle is none of nubes.")
        return found

    def find_class(self, module: str, name: str) -> Any:
        plain = (module == "collections" or module == "builtins") and name in _PLAIN
        numbers = module.startswith("numpy") and name in ("_reconstruct", "ndarray", "dtype", "scalar")
        if plain or numbers or (module, name) == ("msgspec._utils", "rebuild"):
            return super().find_class(module, name)
        found = super().find_class(module, name) if module.startswith("nubes.") and "." not in name else None
        if isinstance(found, type) and found.__module__.startswith("nubes."):
            return found
        raise UsageError(f"The state in this bundle holds {module}.{name}, which is not of nubes.", "It is not opened.")
