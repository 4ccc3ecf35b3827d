"""Shared dicts and queues, and secrets, in PostgreSQL."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nubes.drivers.local.store_operations import Operation, Rows, empty
from nubes.drivers.postgres.connections import Connection, Fenced, name


class PostgresTables:
    """What `Stores` works on, for the control plane whose log has this epoch."""

    def __init__(self, url: str, epoch: int) -> None:
        self.where = name(url)
        self._fenced = Fenced(url, epoch)
        self._fresh = True

    def transact(self, batch: Sequence[tuple[Operation, dict[str, Any]]]) -> list[Any]:
        """Results, or errors, of operations in one transaction; one that fails does not disturb the others."""

        def work(connection: Connection) -> list[Any]:
            db = _Database(connection)
            if self._fresh:
                for (store,) in db.execute("SELECT id FROM stores WHERE ephemeral").fetchall():
                    empty(db, store)  # whoever made it went with an earlier control plane
            results: list[Any] = []
            for operation, arguments in batch:
                try:
                    with connection.transaction():
                        results.append(operation(db, arguments))
                except Exception as error:
                    if connection.broken:
                        raise
                    results.append(error)
            return results

        results = self._fenced.run(work)
        self._fresh = False
        return results

    def close(self) -> None:
        self._fenced.close()


class _Database:
    key = "sha256({})"  # an index takes no key of more than some 2,700 bytes

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, values: Sequence[Any] = ()) -> Rows:
        return self._connection.execute(_translated(sql), values, binary=True)

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> Rows:
        cursor = self._connection.cursor()
        cursor.executemany(_translated(sql), rows)
        return cursor


def _translated(sql: str) -> bytes:
    return sql.replace("?", "%s").encode()


class PostgresSecrets:
    """Secrets in a table, for the control plane whose log has this epoch."""

    def __init__(self, url: str, epoch: int) -> None:
        self._fenced = Fenced(url, epoch)

    def load(self) -> dict[str, tuple[dict[str, str], float]]:
        """All secrets: their values, and when each was stored."""
        rows = self._fenced.run(lambda db: db.execute("SELECT name, value, stored FROM secrets").fetchall())
        return {name: (json.loads(value), stored) for name, value, stored in rows}

    def store(self, name: str, values: Mapping[str, str]) -> None:
        row = (name, json.dumps(dict(values)), time.time())
        self._fenced.run(lambda db: db.execute(
            "INSERT INTO secrets VALUES (%s, %s, %s) "
            "ON CONFLICT (name) DO UPDATE SET value = excluded.value, stored = excluded.stored", row,
        ))  # fmt: skip

    def remove(self, name: str) -> None:
        self._fenced.run(lambda db: db.execute("DELETE FROM secrets WHERE name = %s", (name,)))

    def close(self) -> None:
        self._fenced.close()
