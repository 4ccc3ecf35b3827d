"""What can be done with shared dicts and queues: functions of the database and the arguments of the ask `store`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from nubes.kernel.errors import NotFound, UsageError


class Rows(Protocol):
    """What a statement gives."""

    @property
    def rowcount(self) -> int: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...


class Database(Protocol):
    """SQLite or PostgreSQL, in a transaction. Values stand as `?`; `key` shows by what expression keys are compared."""

    key: str

    def execute(self, sql: str, values: Sequence[Any] = ()) -> Rows: ...
    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> Rows: ...


Operation = Callable[[Database, dict[str, Any]], Any]
OPERATIONS: dict[str, Operation] = {}
_ALL = 1 << 62


def _operation(function: Operation) -> Operation:
    OPERATIONS[function.__name__] = function
    return function


def _find(db: Database, arguments: dict[str, Any]) -> tuple[int, int]:
    """Number and bound of the store that `arguments` name; made if they allow it."""
    kind, name = arguments["kind"], arguments["name"]
    row = db.execute("SELECT id, max_items FROM stores WHERE kind = ? AND name = ?", (kind, name)).fetchone()
    if row is not None:
        return int(row[0]), int(row[1])
    if not arguments.get("create"):
        near = ", ".join(
            name
            for (name,) in db.execute("SELECT name FROM stores WHERE kind = ? AND NOT ephemeral", (kind,)).fetchall()
        )
        raise NotFound(
            f"There is no {kind} named {name!r}.",
            f"Write {kind.capitalize()}.from_name({name!r}, create_if_missing=True); there are: {near or 'none'}.",
        )
    return store_create(db, arguments), int(arguments.get("max_items", 0))


@_operation
def store_create(db: Database, arguments: dict[str, Any]) -> int:
    row = (arguments["kind"], arguments["name"], bool(arguments.get("ephemeral")), arguments.get("max_items", 0))
    if db.execute("SELECT 1 FROM stores WHERE kind = ? AND name = ?", row[:2]).fetchone():
        if arguments.get("allow_existing"):
            return _find(db, arguments)[0]
        raise UsageError(
            f"There is a {row[0]} named {row[1]!r} already.", "Choose another name, or allow_existing=True."
        )
    made = db.execute("INSERT INTO stores (kind, name, ephemeral, max_items) VALUES (?, ?, ?, ?) RETURNING id", row)
    return int(made.fetchall()[0][0])


@_operation
def store_list(db: Database, arguments: dict[str, Any]) -> list[str]:
    rows = db.execute("SELECT name FROM stores WHERE kind = ? AND NOT ephemeral ORDER BY name", (arguments["kind"],))
    return [name for (name,) in rows.fetchall()]


@_operation
def store_delete(db: Database, arguments: dict[str, Any]) -> None:
    try:
        empty(db, _find(db, {**arguments, "create": False})[0])
    except NotFound:
        if not arguments.get("allow_missing"):
            raise


def empty(db: Database, store: int) -> None:
    """Removes a store and all that is in it."""
    for table, column in (("entries", "store"), ("items", "store"), ("stores", "id")):
        db.execute(f"DELETE FROM {table} WHERE {column} = ?", (store,))


@_operation
def dict_get(db: Database, arguments: dict[str, Any]) -> bytes | None:
    store, _ = _find(db, arguments)
    found = db.execute(f"SELECT value FROM entries WHERE {_same_key(db)}", (store, arguments["key"])).fetchone()
    return bytes(found[0]) if found is not None else None


@_operation
def dict_put(db: Database, arguments: dict[str, Any]) -> bool:
    """Puts the pairs; with `skip` only those whose keys are new. Whether all were put."""
    store, _ = _find(db, arguments)
    then = "NOTHING" if arguments.get("skip") else "UPDATE SET value = excluded.value"
    rows = [(store, key, value) for key, value in arguments["pairs"]]
    known = f"ON CONFLICT (store, {db.key.format('key')}) DO {then}"
    put = db.executemany(f"INSERT INTO entries (store, key, value) VALUES (?, ?, ?) {known}", rows)
    return put.rowcount == len(rows)


@_operation
def dict_pop(db: Database, arguments: dict[str, Any]) -> bytes | None:
    value: bytes | None = dict_get(db, arguments)
    db.execute(f"DELETE FROM entries WHERE {_same_key(db)}", (_find(db, arguments)[0], arguments["key"]))
    return value


def _same_key(db: Database) -> str:
    return f"store = ? AND {db.key.format('key')} = {db.key.format('?')}"


@_operation
def dict_items(db: Database, arguments: dict[str, Any]) -> list[tuple[bytes | None, bytes | None]]:
    store, _ = _find(db, arguments)
    columns = {"items": "key, value", "keys": "key, NULL", "values": "NULL, value"}[arguments["what"]]
    return db.execute(f"SELECT {columns} FROM entries WHERE store = ? ORDER BY rowid", (store,)).fetchall()


@_operation
def dict_len(db: Database, arguments: dict[str, Any]) -> int:
    store, _ = _find(db, arguments)
    return int(db.execute("SELECT count(*) FROM entries WHERE store = ?", (store,)).fetchone()[0])


@_operation
def dict_clear(db: Database, arguments: dict[str, Any]) -> None:
    db.execute("DELETE FROM entries WHERE store = ?", (_find(db, arguments)[0],))


@_operation
def queue_take(db: Database, arguments: dict[str, Any]) -> list[tuple[int, bytes]]:
    rows = _rows(db, arguments, arguments["count"])
    db.executemany("DELETE FROM items WHERE place = ?", [(place,) for place, _ in rows])
    return rows


@_operation
def queue_return(db: Database, arguments: dict[str, Any]) -> None:
    """Items whose taker went away before it had them go back to where they were."""
    store, _ = _find(db, arguments)
    rows = [(place, store, arguments["partition"], value) for place, value in arguments["rows"]]
    db.executemany("INSERT INTO items (place, store, partition, value) VALUES (?, ?, ?, ?)", rows)


@_operation
def queue_append(db: Database, arguments: dict[str, Any]) -> bool:
    store, most = _find(db, arguments)
    values, partition = arguments["values"], arguments["partition"]
    if most and len(values) > most:
        raise UsageError(f"{len(values)} items cannot be put at once: the queue holds at most {most}.", "Put fewer.")
    if most and _count(db, store, partition) + len(values) > most:
        return False
    rows = [(store, partition, value) for value in values]
    db.executemany("INSERT INTO items (store, partition, value) VALUES (?, ?, ?)", rows)
    return True


@_operation
def queue_items(db: Database, arguments: dict[str, Any]) -> list[bytes]:
    return [value for _, value in _rows(db, arguments, _ALL)]


@_operation
def queue_len(db: Database, arguments: dict[str, Any]) -> int:
    store, _ = _find(db, arguments)
    return _count(db, store, arguments["partition"])


@_operation
def queue_clear(db: Database, arguments: dict[str, Any]) -> None:
    store, _ = _find(db, arguments)
    partition = arguments["partition"]
    db.execute("DELETE FROM items WHERE store = ? AND partition = coalesce(?, partition)", (store, partition))


def _rows(db: Database, arguments: dict[str, Any], count: int) -> list[tuple[int, bytes]]:
    found = (_find(db, arguments)[0], arguments["partition"], count)
    return db.execute(
        "SELECT place, value FROM items WHERE store = ? AND partition = ? ORDER BY place LIMIT ?", found
    ).fetchall()


def _count(db: Database, store: int, partition: str | None) -> int:
    """Items in one partition, or in all."""
    query = "SELECT count(*) FROM items WHERE store = ? AND partition = coalesce(?, partition)"
    return int(db.execute(query, (store, partition)).fetchone()[0])
