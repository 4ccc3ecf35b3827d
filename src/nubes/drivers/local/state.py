"""Where a control plane keeps what must last: in its data folder, or in a database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from nubes.drivers.local import objects as store
from nubes.drivers.local.secret_files import SecretFiles
from nubes.drivers.local.secrets import Keeper
from nubes.drivers.local.tables import SqliteTables, Tables
from nubes.kernel import log as files
from nubes.kernel.errors import UsageError
from nubes.kernel.log import Log
from nubes.kernel.writing import AnyLog

_POINTER = "database"  # in `log/`: the URL of the database that holds the log in place of this folder


class State(NamedTuple):
    """`where` is what the log is called in messages, `objects` the folder or URL of what is too large for it."""

    log: AnyLog
    tables: Tables
    secrets: Keeper
    where: str
    objects: str


def open_state(folder: Path, database: str = "", objects: str = "") -> State:
    """Takes the state of a data folder, or of the database at that URL. Raises what opening a log raises."""
    place = store.place(objects, folder / "objects")
    taken, cloud = _in_database(folder, database, place) if database else _in_folder(folder, place)
    if objects:
        try:
            store.claim(place, cloud)
        except BaseException:
            taken.log.close()
            raise
    return taken


def _in_folder(folder: Path, objects: str) -> tuple[State, str]:
    place = folder / "log"
    known = pointed_at(place)
    if known:
        from nubes.drivers.postgres.connections import name

        raise UsageError(
            f"The state of {folder} is in {name(known)}.",
            f"Start with --database (or NUBES_DATABASE); or remove {place / _POINTER} to begin anew here.",
        )
    log = Log(place)
    tables, secrets = SqliteTables(folder / "stores.sqlite"), SecretFiles(folder / "secrets")
    return State(log, tables, secrets, str(folder), objects), _identity(folder)


def _in_database(folder: Path, url: str, objects: str) -> tuple[State, str]:
    place = folder / "log"
    if any(place.glob("*.log")):
        raise UsageError(
            f"{folder} holds a log of its own, which would not be seen.",
            "Choose another folder with --data, or start without a database.",
        )
    from nubes.drivers.postgres.log import PostgresLog
    from nubes.drivers.postgres.tables import PostgresSecrets, PostgresTables

    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    held = files.lock(place)
    try:
        log = PostgresLog(url, lambda: os.close(held))
    except BaseException:
        os.close(held)
        raise
    try:
        _write(place / _POINTER, url)
    except BaseException:
        log.abandon()
        raise
    tables, secrets = PostgresTables(url, log.epoch), PostgresSecrets(url, log.epoch)
    return State(log, tables, secrets, log.where, objects), log.cloud


def pointed_at(place: Path) -> str:
    """The URL of the database that holds the log of this log folder; empty if it is in the folder itself."""
    try:
        return (place / _POINTER).read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def is_log(place: Path) -> bool:
    """Whether a folder holds a log, or says where it is."""
    return any(place.glob("*.log")) or bool(pointed_at(place))


def read(place: Path) -> Iterator[bytes]:
    """The records of the log of a log folder, which somebody else may be writing to."""
    url = pointed_at(place)
    if not url:
        return files.read(place)
    from nubes.drivers.postgres import reading

    return reading.records(url)


def first(place: Path) -> int:
    """The number of the oldest record that is there."""
    url = pointed_at(place)
    if not url:
        return min((int(path.stem) for path in place.glob("[0-9]*.log")), default=0)
    from nubes.drivers.postgres import reading

    return reading.first(url)


def _identity(folder: Path) -> str:
    path = folder / "id"
    if not path.exists():
        _write(path, os.urandom(16).hex())
    return path.read_text().strip()


def _write(path: Path, text: str) -> None:
    """Whole or not at all, for its owner only."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
