"""Where shared dicts and queues are kept: tables in one SQLite file of the data folder, or in PostgreSQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from nubes.drivers.local.store_operations import Operation, Rows, empty

SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
CREATE TABLE IF NOT EXISTS stores (
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT, name TEXT, ephemeral INTEGER, max_items INTEGER,
    UNIQUE (kind, name));
CREATE TABLE IF NOT EXISTS entries (store INTEGER, key BLOB, value BLOB, UNIQUE (store, key));
CREATE TABLE IF NOT EXISTS items (
    place INTEGER PRIMARY KEY AUTOINCREMENT, store INTEGER, partition TEXT, value BLOB);
CREATE INDEX IF NOT EXISTS items_in_order ON items (store, partition, place);
"""


class Tables(Protocol):
    """Used by one thread. `where` is what it is called in messages."""

    where: str

    def transact(self, batch: Sequence[tuple[Operation, dict[str, Any]]]) -> list[Any]:
        """Results of operations in one transaction, which is on disk then.

        One that raises leaves nothing, does not disturb the others, and its error stands in place of a result.
        """

    def close(self) -> None: ...


class SqliteTables:
    """A file, opened when it is first needed."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._path = path
        self._db: sqlite3.Connection | None = None

    def transact(self, batch: Sequence[tuple[Operation, dict[str, Any]]]) -> list[Any]:
        if self._db is None:
            self._db = self._open()
        db = _Database(self._db)
        results: list[Any] = []
        db.execute("BEGIN IMMEDIATE")
        try:
            for operation, arguments in batch:
                db.execute("SAVEPOINT one")
                try:
                    results.append(operation(db, arguments))
                except Exception as error:
                    if isinstance(error, sqlite3.OperationalError):
                        raise  # the file itself: full, or broken
                    db.execute("ROLLBACK TO one")
                    results.append(error)
                db.execute("RELEASE one")
            db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                db.execute("ROLLBACK")
            raise
        return results

    def _open(self) -> sqlite3.Connection:
        opened = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        self._path.chmod(0o600)
        opened.executescript(SCHEMA)
        for (store,) in opened.execute("SELECT id FROM stores WHERE ephemeral").fetchall():
            empty(_Database(opened), store)  # whoever made it went with an earlier control plane
        return opened

    def close(self) -> None:
        if self._db is not None:
            self._db.close()


class _Database:
    key = "{}"

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def execute(self, sql: str, values: Sequence[Any] = ()) -> Rows:
        return self._db.execute(sql, values)

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> Rows:
        return self._db.executemany(sql, rows)
