"""The log of a control plane: what was promised is flushed, many promises at a time, before it is told."""

from __future__ import annotations

import asyncio
import errno
import functools
import hashlib
import os
import pickle
import signal
import sys
from collections.abc import Callable, Set
from pathlib import Path

import nubes
from nubes.drivers.local import retention
from nubes.drivers.local.state import State
from nubes.functions import events as e
from nubes.functions.controller import Functions
from nubes.kernel.errors import LogCorrupt, UnknownPolicy
from nubes.kernel.message import Codec, Event
from nubes.kernel.writing import Superseded

WRITE_S = 0.05  # how long a record that nobody waits for may stay in memory
SNAPSHOT_RECORDS = 200_000  # how many records between snapshots
UNSYNCED_BYTES = 8 << 20  # how much may be written before it is flushed, asked for or not: so much stays in memory
_RETRY_S = 1.0  # how soon a full disk is tried again
_RETRY_SYNC_S = 0.2

_Safe = tuple[Callable[[], None], Callable[[str], None] | None]


class Journal:
    """The records of a control plane's log, and the state they fold to."""

    def __init__(
        self, state: State, say: Callable[[str], None] | None = None,
        sweep: Callable[[str, Set[str]], int] = retention.remove_unused, snapshot_records: int = SNAPSHOT_RECORDS,
        keep_log_bytes: int = retention.KEEP_LOG_BYTES,
    ) -> None:  # fmt: skip
        """`sweep` removes what is at a place, unless it is in a set; it runs beside the loop."""
        self.where = state.where
        self._complain = say or complain
        self._remove_unused = sweep
        self._snapshot_records = snapshot_records
        self._keep_log_bytes = keep_log_bytes
        self._objects = state.objects
        self.log = state.log
        self.full = ""  # why nothing can be written, while nothing can
        self.flushed: Callable[[float], None] = lambda _: None  # told how long each flush took
        self.flushing_since_s = 0.0  # by the loop's clock; 0: no flush is under way
        self._codec = Codec(e.EVENTS)
        self._unsynced: list[_Safe] = []
        self._syncing = False
        self._write_later = False
        self._superseded = False
        self._snapshot_at = 0
        self._unsynced_bytes = 0
        self._now = 0.0  # when the newest record was appended
        self._loop: asyncio.AbstractEventLoop
        self._state: Functions

    # -- recovery ------------------------------------------------------------------------------------------------

    def recover(self, loop: asyncio.AbstractEventLoop) -> tuple[Functions, float]:
        """Folds the log: the state, and the time of its last record (0: there is none)."""
        self._loop = loop
        self._state, start, last = self._newest()
        for record in self.log.records(start):
            last, event = self._codec.decode(record)
            try:
                self._state.handle(event, last)
            except UnknownPolicy as error:
                raise self._missing(error.message) from error
        self._snapshot_at = self.log.count
        self._now = last
        self._sweep()
        return self._state, last

    def _newest(self) -> tuple[Functions, int, float]:
        """The newest state, the record to go on from, and the time it was made.

        A state of other code is made anew from the whole log.
        """
        if self.log.snapshot is not None:
            head, _, state = self.log.snapshot.partition(b"\n")
            version, _, at = head.partition(b" ")
            if version == _code_version() or self.log.first > 0:
                try:
                    return pickle.loads(state), self.log.snapshot_at, float(at or 0)
                except Exception as error:
                    if self.log.first > 0:
                        if version == _code_version() and isinstance(error, ImportError | AttributeError):
                            raise self._missing(f"{error}.") from error
                        raise LogCorrupt(
                            f"The state in {self.where} was made by another version of nubes ({error!r}).",
                            "Start that version once more, or begin with an empty data folder.",
                        ) from None
        return Functions(), self.log.first, 0.0

    def _missing(self, what: str) -> UnknownPolicy:
        return UnknownPolicy(
            f"A policy that decided for {self.where} is not installed any more: {what}",
            "Install the package it came with again, then start again: nothing is lost. Or choose another folder with "
            "--data.",
        )

    # -- writing -------------------------------------------------------------------------------------------------

    def append(self, now: float, event: Event) -> None:
        """Notes an event; it is on disk soon."""
        self._now = now
        record = self._codec.encode(now, event)
        self.log.append(record)
        self._unsynced_bytes += len(record)
        if not self._write_later:
            self._write_later = True
            self._loop.call_later(WRITE_S, self._write)

    def when_safe(self, then: Callable[[], None], otherwise: Callable[[str], None] | None = None) -> None:
        """Calls `then` once all that was appended so far would survive a power cut. Many share one flush.

        If that cannot be had now, `otherwise` is told why; without it, `then` waits until it can.
        """
        self._unsynced.append((then, otherwise))
        if not self._syncing:
            self._syncing = True
            self._loop.call_soon(self._sync)

    def close(self) -> None:
        """Keeps the state, so that the next start need not fold the log."""
        self._snapshot()

    def let_go(self) -> None:
        """Gives the log back."""
        try:
            self.log.close()
        except OSError as error:
            self._complain(f"The log in {self.where} cannot be closed in order: {error.strerror}.")

    def _write(self) -> None:
        self._write_later = False
        try:
            self.log.write()
            self.full = ""
        except OSError as error:
            self._cannot_write(error)
        if self.log.count - self._snapshot_at > self._snapshot_records:
            self._snapshot()
            self.when_safe(self._sweep)
        elif self._unsynced_bytes > UNSYNCED_BYTES:
            self.when_safe(lambda: None)

    def _cannot_write(self, error: OSError) -> None:
        if not self.full:
            hint = " Free some space." if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            self.full = f"The log in {self.where} cannot be written: {error.strerror}.{hint}"
            self._complain(f"{self.full} Nothing accepted is lost.")
        if isinstance(error, Superseded) and not self._superseded:
            self._superseded = True
            self._complain(f"This control plane ends: {error.strerror}.")
            os.kill(os.getpid(), signal.SIGTERM)
        if not self._write_later:
            self._write_later = True
            self._loop.call_later(_RETRY_S, self._write)

    def _sync(self) -> None:
        waiting, self._unsynced = self._unsynced, []
        try:
            self.log.write()
        except OSError as error:
            self._not_safe(waiting, error)
            return
        self.full = ""
        self._unsynced_bytes = 0
        self.flushing_since_s = self._loop.time()
        future = self._loop.run_in_executor(None, self.log.sync)
        future.add_done_callback(lambda done: self._synced(done, waiting))

    def _synced(self, done: asyncio.Future[None], waiting: list[_Safe]) -> None:
        self.flushed(self._loop.time() - self.flushing_since_s)
        self.flushing_since_s = 0.0
        error = None if done.cancelled() else done.exception()
        if isinstance(error, OSError):
            self._not_safe(waiting, error)
            return
        if error is not None or done.cancelled():
            self._unsynced = waiting + self._unsynced
        else:
            for then, _ in waiting:
                then()
        if self._unsynced:
            self._loop.call_soon(self._sync)
        else:
            self._syncing = False

    def _not_safe(self, waiting: list[_Safe], error: OSError) -> None:
        """What could not be kept is refused, or else waits until it is tried again."""
        self._cannot_write(error)
        self._unsynced = [(then, None) for then, otherwise in waiting if otherwise is None] + self._unsynced
        for _, otherwise in waiting:
            if otherwise is not None:
                otherwise(self.full)
        self._loop.call_later(_RETRY_SYNC_S, self._sync)

    def _snapshot(self) -> None:
        try:
            state = b"%s %r\n" % (_code_version(), self._now) + pickle.dumps(self._state, 5)
            self.log.save_snapshot(state, keep_segments=self.log.size_bytes() <= self._keep_log_bytes)
            self._snapshot_at = self.log.count
        except OSError as error:
            self._cannot_write(error)

    def _sweep(self) -> None:
        """Removes objects that nothing refers to. All that is in the state must be safe by now."""
        used = retention.used(self._state)
        work = self._loop.run_in_executor(None, self._remove_unused, self._objects, used)
        work.add_done_callback(self._swept)

    def _swept(self, done: asyncio.Future[int]) -> None:
        error = None if done.cancelled() else done.exception()
        if error is not None:
            self._complain(f"Objects that are not needed any more could not be removed: {error}")


@functools.cache
def _code_version() -> bytes:
    """One word for the code that a state is the fold of."""
    digest = hashlib.sha256(nubes.__version__.encode())
    for package in ("kernel", "functions", "cluster", "serving"):  # whose objects a state holds
        for path in sorted((Path(nubes.__file__).parent / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16].encode()


def complain(text: str) -> None:
    """Says something on standard error, which may itself be on the full disk that is complained about."""
    try:
        print(f"nubes: {text}", file=sys.stderr, flush=True)
    except OSError:
        pass
