"""Reading the log in PostgreSQL, and finding what of it can be trusted."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg

from nubes.drivers.postgres import connections
from nubes.drivers.postgres.connections import Connection, told
from nubes.kernel.errors import LogCorrupt, Unavailable

_PAGE = 1000  # records that are read at once
_RUNS = """
SELECT min(number), max(number) + 1 FROM
    (SELECT number, number - row_number() OVER (ORDER BY number) AS run FROM log) AS numbered
GROUP BY run ORDER BY 1
"""
_SET_ASIDE = """
WITH taken AS (DELETE FROM log WHERE number >= %s AND number < %s RETURNING number, body)
INSERT INTO damaged (number, body) SELECT number, body FROM taken
"""


def first(url: str) -> int:
    """The number of the oldest record there is. Raises `Unavailable`."""
    try:
        with connections.connect(url) as db:
            row = db.execute("SELECT coalesce(min(number), 0) FROM log").fetchone()
    except psycopg.Error as error:
        raise _unreadable(url, error) from error
    return int(row[0]) if row else 0


def records(url: str, start: int = 0) -> Iterator[bytes]:
    """The committed records of a log that somebody may be writing to, up to the first gap. Raises `Unavailable`."""
    try:
        with connections.connect(url) as db:
            following = None
            while True:
                page = db.execute(
                    "SELECT number, body FROM log WHERE number >= %s ORDER BY number LIMIT %s",
                    (start if following is None else following, _PAGE),
                    binary=True,
                ).fetchall()
                for number, body in page:
                    if following not in (None, number):
                        return
                    following = number + 1
                    yield body
                if len(page) < _PAGE:
                    return
    except psycopg.Error as error:
        raise _unreadable(url, error) from error


def _unreadable(url: str, error: psycopg.Error) -> Unavailable:
    return Unavailable(f"The log in {connections.name(url)} cannot be read: {told(error)}.", "Try again later.")


def recover(db: Connection, where: str, covered: int, following: int) -> tuple[int, int, list[str]]:
    """Finds the run of records that can be trusted: its first, the number behind its last, and what was wrong.

    The newest state covers `covered` records; the next would have been number `following`. A gap is harmless if the
    state covers it: then what comes before it is set aside, else what comes behind. Raises `LogCorrupt`.
    """
    runs = _runs(db)
    findings: list[str] = []

    def set_aside(first: int, behind: int, why: str) -> None:
        db.execute(_SET_ASIDE, (first, behind))
        findings.append(f"Records {first} to {behind - 1} are now in the table damaged: {why}.")

    first = end = covered
    if runs:
        last = runs[-1][1]
        (first, end), *rest = runs
        if first > covered:
            raise LogCorrupt(
                f"The log in {where} starts at record {first}, but the newest state covers {covered}.",
                "Restore the database from a backup, or start with an empty one.",
            )
        for begin, behind in rest:
            findings.append(f"The records from {end} to {begin - 1} are missing.")
            if begin > covered:
                set_aside(begin, last, "they cannot follow")
                break
            set_aside(first, end, "the newest state covers them")
            first, end = begin, behind
        if end < covered:
            findings.append(f"The log ends at record {end}; the state of {covered} records takes its place.")
            set_aside(first, end, "the newest state covers them")
            first = end = covered
    if following > end and not findings:
        findings.append(f"The records from {end} to {following - 1} were committed, and are missing.")
    db.execute("UPDATE writer SET next = %s", (end,))
    return first, end, findings


def _runs(db: Connection) -> list[tuple[int, int]]:
    """(first, behind the last) of each run of records without a gap."""
    low, high, count = db.execute("SELECT min(number), max(number) + 1, count(*) FROM log").fetchone() or (None, 0, 0)
    if low is None:
        return []
    return [(low, high)] if high - low == count else [(row[0], row[1]) for row in db.execute(_RUNS)]


def size_bytes(db: Connection, count: int) -> int:
    """About how large `count` records are."""
    row = db.execute(
        "SELECT avg(octet_length(body)) FROM (SELECT body FROM log ORDER BY number DESC LIMIT 1000) AS newest"
    ).fetchone()
    return int((row[0] if row and row[0] else 0) * count)
