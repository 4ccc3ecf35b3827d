"""The log in PostgreSQL: one row a record, many records a transaction, one writer.

A thread commits what is handed over, all that has come meanwhile at once. The statement that inserts records also moves
the row `writer` from the number of the first to behind the last, if that row still has this writer's epoch: so after
a lost connection it is certain whether the last transaction happened, and records are there once.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator

import psycopg

from nubes.drivers.postgres import connections, reading
from nubes.drivers.postgres.connections import told
from nubes.kernel.errors import Unavailable, UsageError
from nubes.kernel.writing import Superseded

MAX_RECORD_BYTES = 256 << 20
_BATCH_BYTES = 8 << 20
_BATCH_RECORDS = 20_000
_RETRY_S = 0.25
_END_S = 10.0  # how long closing may wait for the last commit

_INSERT = """
WITH mine AS (UPDATE writer SET next = next + %(count)s WHERE epoch = %(epoch)s AND next = %(first)s RETURNING 1)
INSERT INTO log SELECT %(first)s + place - 1, body FROM mine,
    unnest(%(bodies)b::bytea[]) WITH ORDINALITY AS given (body, place)
"""
_MINE = "SELECT 1 FROM writer WHERE epoch = %s FOR SHARE"
_KEEP = "INSERT INTO snapshots VALUES (%s, %s) ON CONFLICT (count) DO UPDATE SET state = excluded.state"
_KEEP_TWO = "DELETE FROM snapshots WHERE count NOT IN (SELECT count FROM snapshots ORDER BY count DESC LIMIT 2)"


class PostgresLog:
    """The log in the database at `url`, held as long as this lasts. See `nubes.kernel.writing.AnyLog`.

    `at_end` is called once it has been let go of.

    Raises `AlreadyRunning` if another control plane holds it, `Unavailable` if the server cannot be used, and
    `LogCorrupt` if no state and records lead up to its end.
    """

    def __init__(self, url: str, at_end: Callable[[], None] = lambda: None) -> None:
        self.url = url
        self._at_end = at_end
        self.where = connections.name(url)
        self._db, writer = connections.take(url)
        self.epoch, self.cloud = writer.epoch, writer.cloud
        try:
            rows = self._db.execute("SELECT count, state FROM snapshots ORDER BY count DESC LIMIT 1", binary=True)
            self.snapshot_at, self.snapshot = rows.fetchone() or (0, None)
            found = reading.recover(self._db, self.where, self.snapshot_at, writer.next)
            self.first, self.count, self.findings = found
            self._size = reading.size_bytes(self._db, self.count - self.first)
        except psycopg.Error as error:
            self._db.close()
            raise Unavailable(f"The log in {self.where} cannot be read: {told(error)}.", "Try again.") from error
        except BaseException:
            self._db.close()
            raise
        self._pid = self._db.info.backend_pid
        self._buffer: list[bytes] = []
        self._changed = threading.Condition()  # guards what follows
        self._waiting: list[bytes] = []  # handed over, and not yet committed
        self._committed = self._handed = self.count
        self._state: tuple[int, bytes, bool] | None = None
        self._trouble = ""  # why nothing can be committed
        self._superseded = False
        self._closing = False
        self._thread = threading.Thread(target=self._commit, name="nubes-log", daemon=True)
        self._thread.start()

    # -- reading -------------------------------------------------------------------------------------------------

    def records(self, start: int | None = None) -> Iterator[bytes]:
        """Committed records from number `start` on (default: those the newest snapshot does not cover)."""
        return reading.records(self.url, self.snapshot_at if start is None else start)

    # -- writing -------------------------------------------------------------------------------------------------

    def append(self, body: bytes) -> int:
        """Adds a record to the buffer and returns its number. Raises `UsageError` if it is too large."""
        if len(body) > MAX_RECORD_BYTES:
            raise UsageError(
                f"A record of {len(body)} bytes is too large for the log.",
                "Store the data elsewhere and pass its name.",
            )
        self._buffer.append(body)
        self._size += len(body)
        self.count += 1
        return self.count - 1

    def write(self) -> None:
        """Hands everything buffered to the thread that commits. Raises `OSError` while the server is away."""
        with self._changed:
            if self._buffer:
                self._waiting += self._buffer
                self._handed += len(self._buffer)
                self._buffer = []
                self._changed.notify_all()
            self._complain()

    def sync(self) -> None:
        """Everything handed over so far is committed once this returns. May be called from another thread."""
        with self._changed:
            until = self._handed
            while self._committed < until:
                self._complain()
                self._changed.wait()

    def save_snapshot(self, state: bytes, keep_segments: bool = True) -> None:
        """Keeps `state` as the fold of all records so far, once these are committed; does not wait for it.

        Without `keep_segments`, drops the records that two snapshots cover.
        """
        self.write()
        with self._changed:
            self._state = (self.count, state, keep_segments)
            self._changed.notify_all()

    def size_bytes(self) -> int:
        """About how large all records are."""
        return self._size

    def close(self) -> None:
        """Commits what is left and lets go of the database, even if it cannot. Raises `OSError` then."""
        try:
            self.write()
            with self._changed:
                until = time.monotonic() + _END_S
                while (
                    (self._waiting or self._state)
                    and not self._trouble
                    and not self._superseded
                    and time.monotonic() < until
                ):
                    self._changed.wait(0.1)
                self._complain()
                if self._waiting:
                    raise OSError(errno.ETIMEDOUT, f"{self.where} did not answer within {_END_S:g} s")
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Lets go at once: what has not been committed is lost, as in a crash."""
        with self._changed:
            self._closing = True
            self._waiting.clear()
            self._state = None
            self._changed.notify_all()
        self._thread.join(_END_S)
        self._db.close()
        self._at_end()

    def _complain(self) -> None:
        if self._superseded:
            raise Superseded(self.where)
        if self._trouble:
            raise OSError(errno.EIO, self._trouble)
        if self._closing:
            raise OSError(errno.ESHUTDOWN, "it has been closed")

    # -- the thread ----------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        failures = 0  # the first is no trouble yet: the connection may have been lost while nothing was to be done
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._state or self._closing)
                if self._closing:
                    return
                batch, state = _batch(self._waiting), self._state
            try:
                if self._db.closed:
                    self._return()
                    continue
                if batch:
                    self._insert(batch)
                elif state is not None:
                    self._keep(*state)
                failures = 0
            except Superseded:
                with self._changed:
                    self._superseded = True
                    self._changed.notify_all()
                return
            except psycopg.Error as error:
                self._db.close()
                failures += 1
                with self._changed:
                    if failures > 1:
                        self._trouble = told(error)
                        self._changed.notify_all()
                        self._changed.wait_for(lambda: self._closing, _RETRY_S)

    def _insert(self, batch: list[bytes]) -> None:
        values = {"count": len(batch), "epoch": self.epoch, "first": self._committed, "bodies": batch}
        if self._db.execute(_INSERT, values).rowcount != len(batch):
            raise Superseded(self.where)
        with self._changed:
            self._drop(len(batch))
            self._trouble = ""

    def _drop(self, count: int) -> None:
        """So many more records are committed."""
        del self._waiting[:count]
        self._committed += count
        self._changed.notify_all()

    def _return(self) -> None:
        """Connects again, takes the lock again, and learns how far the last transaction came. `Superseded`."""
        db = connections.connect(self.url)
        try:
            ours = connections.try_lock(db)
            row = db.execute("SELECT next FROM writer WHERE epoch = %s", (self.epoch,)).fetchone()
            if row is None:
                raise Superseded(self.where)
            if not ours:  # the server still believes in the connection that was lost, or another is about to take over
                connections.end_own(db, self._pid)
                raise psycopg.OperationalError("the lock of this control plane's last connection is still held")
            if not self._committed <= row[0] <= self._handed:
                raise psycopg.OperationalError(
                    f"the server has {row[0]} records of {self._committed} that it had committed: restore it"
                )
        except BaseException:
            db.close()
            raise
        self._db, self._pid = db, db.info.backend_pid
        with self._changed:
            self._drop(row[0] - self._committed)
            if not self._waiting:
                self._trouble = ""

    def _keep(self, count: int, state: bytes, keep_records: bool) -> None:
        """Stores a snapshot. One that the server does not want is given up: the next may be had."""
        kept: list[int] = []
        try:
            with self._db.transaction():
                if not self._db.execute(_MINE, (self.epoch,)).rowcount:
                    raise Superseded(self.where)
                self._db.execute(_KEEP, (count, state))
                self._db.execute(_KEEP_TWO)
                kept = [row[0] for row in self._db.execute("SELECT count FROM snapshots ORDER BY count")]
                if not keep_records and len(kept) == 2:
                    self._db.execute("DELETE FROM log WHERE number < %s", (kept[0],))
                    self.first = max(self.first, kept[0])
        except psycopg.Error:
            if self._db.broken:
                raise
        self._size = reading.size_bytes(self._db, self.count - self.first)
        with self._changed:
            if self._state is not None and self._state[0] == count:
                self._state = None
            self._changed.notify_all()


def _batch(waiting: list[bytes]) -> list[bytes]:
    """The first of the records that wait: so many that the server takes them well."""
    size = 0
    for place, body in enumerate(waiting[:_BATCH_RECORDS]):
        size += len(body)
        if size > _BATCH_BYTES:
            return waiting[: place + 1]
    return waiting[:_BATCH_RECORDS]
