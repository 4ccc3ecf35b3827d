"""What holds for a log wherever it is kept: in a folder, or in PostgreSQL."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from backends import until
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from nubes.drivers.local import state
from nubes.kernel.errors import AlreadyRunning, LogCorrupt, UsageError
from nubes.kernel.log import Log
from nubes.kernel.writing import AnyLog

BODIES = [b"", b"a", b"\0" * 9, b"nubeslog1\n", bytes(range(40)), b"z" * 200]


class Place(Protocol):
    """Where one log is."""

    def open(self) -> AnyLog: ...
    def crash(self, log: Any) -> None:
        """As if the process had been killed: what was not synced may be lost."""

    def settle(self, log: Any) -> None:
        """Waits until the newest snapshot is kept."""

    def read(self) -> list[bytes]: ...
    def empty(self) -> None: ...
    def script(self) -> str:
        """An expression that opens the log."""


class FolderPlace:
    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="nubes-log-"))

    def open(self) -> AnyLog:
        return Log(self.folder, segment_bytes=100)

    def crash(self, log: Any) -> None:
        os.close(log._fd)
        os.close(log._lock)

    def settle(self, log: Any) -> None:
        pass

    def read(self) -> list[bytes]:
        return list(state.read(self.folder))

    def empty(self) -> None:
        shutil.rmtree(self.folder)

    def script(self) -> str:
        return f"__import__('nubes.kernel.log').kernel.log.Log(__import__('pathlib').Path({str(self.folder)!r}), 2000)"


class DatabasePlace:
    def __init__(self, url: str) -> None:
        self.url = url

    def open(self) -> AnyLog:
        from nubes.drivers.postgres.log import PostgresLog

        return PostgresLog(self.url)

    def crash(self, log: Any) -> None:
        log.abandon()

    def settle(self, log: Any) -> None:
        until(lambda: log._state is None)

    def read(self) -> list[bytes]:
        from nubes.drivers.postgres.reading import records

        return list(records(self.url))

    def empty(self) -> None:
        self.run("TRUNCATE log, snapshots, damaged; UPDATE writer SET next = 0")

    def run(self, statement: str) -> None:
        from nubes.drivers.postgres.connections import connect

        with connect(self.url) as db:
            db.execute(statement)

    def script(self) -> str:
        return f"__import__('nubes.drivers.postgres.log').drivers.postgres.log.PostgresLog({self.url!r})"


@pytest.fixture(params=["folder", "postgres"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    if request.param == "folder":
        made = FolderPlace()
        yield made
        shutil.rmtree(made.folder, ignore_errors=True)
    else:
        yield DatabasePlace(request.getfixturevalue("postgres").new())


def machine(place: Place) -> type[RuleBasedStateMachine]:
    class LogIsAList(RuleBasedStateMachine):
        """Appends, writes, snapshots, kills and re-opens, beside a list of what was written."""

        def __init__(self) -> None:
            super().__init__()
            self.log = place.open()
            self.written: list[bytes] = []
            self.buffered: list[bytes] = []
            self.states: list[int] = []

        def teardown(self) -> None:
            self.log.close()
            place.empty()

        def all_written(self) -> None:
            self.written += self.buffered
            self.buffered = []

        @rule(bodies=st.lists(st.sampled_from(BODIES), min_size=1, max_size=4))
        def append(self, bodies: list[bytes]) -> None:
            for body in bodies:
                assert self.log.append(body) == len(self.written) + len(self.buffered)
                self.buffered.append(body)

        @rule()
        def write(self) -> None:
            self.log.write()
            self.log.sync()
            self.all_written()

        @rule(keep=st.booleans())
        def snapshot(self, keep: bool) -> None:
            self.log.save_snapshot(str(len(self.written) + len(self.buffered)).encode(), keep)
            self.log.sync()
            place.settle(self.log)
            self.all_written()
            self.states.append(len(self.written))

        @rule()
        def close_and_open(self) -> None:
            self.log.close()
            self.all_written()
            self.log = place.open()
            assert self.log.findings == []

        @rule()
        def crash_and_open(self) -> None:
            place.crash(self.log)
            self.buffered = []
            self.log = place.open()
            assert self.log.findings == []

        @precondition(lambda self: self.states)
        @rule()
        def newest_state(self) -> None:
            self.close_and_open()
            assert self.log.snapshot_at == self.states[-1]
            assert self.log.snapshot == str(self.states[-1]).encode()
            assert list(self.log.records()) == self.written[self.states[-1] :]

        @invariant()
        def same(self) -> None:
            assert self.log.count == len(self.written) + len(self.buffered)
            assert place.read() == self.written[self.log.first :]
            assert self.log.first <= (self.states[-2] if len(self.states) > 1 else 0)
            middle = (self.log.first + len(self.written)) // 2
            assert list(self.log.records(middle)) == self.written[middle:]

    return LogIsAList


def test_a_log_is_a_list(place: Place) -> None:
    examples = 40 if isinstance(place, FolderPlace) else 12
    run_state_machine_as_test(
        machine(place),
        settings=settings(
            max_examples=examples, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_a_record_that_is_too_large_is_refused_and_nothing_is_lost(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = place.open()
    monkeypatch.setattr(sys.modules[type(log).__module__], "MAX_RECORD_BYTES", 10)
    log.append(b"fits")
    with pytest.raises(UsageError, match="too large"):
        log.append(b"does not fit")
    log.append(b"too")
    log.close()
    assert place.read() == [b"fits", b"too"]


def test_many_records_and_large_ones(place: Place) -> None:
    bodies = [b"%d" % number for number in range(5000)] + [bytes([n]) * (3 << 20) for n in range(5)] + [b"last"]
    log = place.open()
    for body in bodies:
        log.append(body)
    log.write()
    log.sync()
    assert place.read() == bodies
    assert log.size_bytes() >= sum(map(len, bodies))
    log.close()


def with_states(place: Place, keep: bool = True) -> None:
    """Records 0..9, with states of the first 3, 5 and 8."""
    log = place.open()
    for number in range(10):
        log.append(b"record %d" % number + b" " * 90)
        log.write()
        if number in (2, 4, 7):
            log.save_snapshot(b"state of %d" % (number + 1), keep_segments=keep)
            place.settle(log)
    log.close()


def numbers(log: AnyLog) -> list[int]:
    return [int(body.split()[1]) for body in log.records()]


def test_a_log_is_opened_with_its_newest_state(place: Place) -> None:
    with_states(place)
    log = place.open()
    assert (log.snapshot_at, log.snapshot, log.first, log.count) == (8, b"state of 8", 0, 10)
    assert numbers(log) == [8, 9]
    assert len(list(log.records(0))) == 10
    log.close()


def test_records_that_two_states_cover_may_go(place: Place) -> None:
    with_states(place, keep=False)
    log = place.open()
    assert (log.snapshot_at, log.count) == (8, 10)
    assert 0 < log.first <= 5
    assert numbers(log) == [8, 9]
    assert log.findings == []
    log.close()


def test_two_writers(place: Place) -> None:
    log = place.open()
    log.append(b"mine")
    with pytest.raises(AlreadyRunning, match=f"rocess {os.getpid()}"):
        place.open()
    other = subprocess.run([sys.executable, "-c", place.script()], capture_output=True, text=True, check=False)
    assert f"rocess {os.getpid()}" in other.stderr
    assert "already runs" in other.stderr
    log.close()
    assert place.read() == [b"mine"]


WRITER = """
log = {log}
number = log.count
while True:
    for _ in range(number % 7 + 1):
        log.append(b"%d " % number * (number % 50 + 1))
        number += 1
    log.write()
    if number % 40 == 0:
        log.save_snapshot(b"%d" % number)
    log.sync()
    print(number, flush=True)
"""


def test_what_was_acknowledged_survives_kill_9(place: Place) -> None:
    r = random.Random(7)
    acknowledged = 0
    for _ in range(6):
        command = [sys.executable, "-c", WRITER.format(log=place.script())]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        told = writer.stdout.readline()  # it runs
        time.sleep(r.random() * 0.1)
        os.kill(writer.pid, signal.SIGKILL)
        told += writer.stdout.read()
        writer.wait()
        acknowledged = max([acknowledged, *(int(line) for line in told.split("\n")[:-1])])
        log = place.open()
        found = list(log.records(0))
        assert len(found) >= acknowledged
        assert all(body == b"%d " % number * (number % 50 + 1) for number, body in enumerate(found))
        assert all("was cut short by a crash" in finding for finding in log.findings)
        assert log.snapshot is None or int(log.snapshot) == log.snapshot_at
        log.close()
    assert acknowledged > 50


# -- what is missing from a database ------------------------------------------------------------------------------


@pytest.fixture
def database(postgres: Any) -> DatabasePlace:
    return DatabasePlace(postgres.new())


def damaged(place: DatabasePlace, statement: str) -> AnyLog:
    place.run(statement)
    return place.open()


def goes_on(place: DatabasePlace, log: AnyLog, whole: list[int], newest: int) -> None:
    """The log takes new records behind `newest`, and keeps them; only `whole` are read."""
    assert [int(body.split()[1]) for body in place.read()] == whole
    assert log.append(b"record %d" % newest) == newest
    log.close()
    again = place.open()
    assert again.findings == []
    assert [int(body.split()[1]) for body in place.read()] == [*whole, newest]
    again.close()


def test_a_gap_before_the_newest_state_costs_nothing_behind_it(database: DatabasePlace) -> None:
    with_states(database)
    log = damaged(database, "DELETE FROM log WHERE number IN (2, 3)")
    assert log.findings[0] == "The records from 2 to 3 are missing."
    assert "Records 0 to 1 are now in the table damaged" in log.findings[1]
    assert (log.first, log.count, log.snapshot_at) == (4, 10, 8)
    goes_on(database, log, [4, 5, 6, 7, 8, 9], 10)


def test_a_gap_behind_the_newest_state_ends_the_log_before_it(database: DatabasePlace) -> None:
    with_states(database)
    log = damaged(database, "DELETE FROM log WHERE number = 8")
    assert log.findings[0] == "The records from 8 to 8 are missing."
    assert (log.first, log.count) == (0, 8)
    goes_on(database, log, [0, 1, 2, 3, 4, 5, 6, 7], 8)


def test_a_log_that_ends_before_its_state_goes_on_behind_it(database: DatabasePlace) -> None:
    with_states(database)
    log = damaged(database, "DELETE FROM log WHERE number > 5")
    assert "ends at record 6; the state of 8 records takes its place" in log.findings[0]
    assert (log.snapshot, log.first, log.count) == (b"state of 8", 8, 8)
    goes_on(database, log, [], 8)


def test_committed_records_that_are_gone_are_noticed(database: DatabasePlace) -> None:
    with_states(database)
    log = damaged(database, "DELETE FROM log WHERE number = 9")
    assert log.findings == ["The records from 9 to 9 were committed, and are missing."]
    goes_on(database, log, [0, 1, 2, 3, 4, 5, 6, 7, 8], 9)


def test_a_log_without_its_beginning_is_an_error(database: DatabasePlace) -> None:
    with_states(database)
    for _ in range(2):  # the second time too: the lock was let go of
        with pytest.raises(LogCorrupt, match="starts at record 5, but the newest state covers 0"):
            damaged(database, "DELETE FROM log WHERE number < 5; DELETE FROM snapshots")


# -- a server that goes away, and another writer ---------------------------------------------------------------------


def test_a_connection_that_is_cut_loses_and_doubles_nothing(database: DatabasePlace) -> None:
    """The server ends the connection at any moment, again and again, while records are written."""
    log: Any = database.open()
    r = random.Random(3)
    expected = []
    for number in range(300):
        expected.append(b"%d" % number)
        log.append(expected[-1])
        if number % 10 == r.randrange(10):
            database.run(f"SELECT pg_terminate_backend({log._pid})")
        try:
            log.write()
            if number % 3 == 0:
                log.sync()
        except OSError:
            time.sleep(0.05)
    until(lambda: _synced(log))
    assert database.read() == expected
    log.close()


def _synced(log: AnyLog) -> bool:
    try:
        log.write()
        log.sync()
        return True
    except OSError:
        return False


def test_a_commit_whose_answer_was_lost_is_not_repeated(
    database: DatabasePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transaction happened, its acknowledgement did not arrive."""
    import psycopg

    log: Any = database.open()
    insert = log._insert

    def cut(batch: list[bytes]) -> None:
        monkeypatch.setattr(log, "_insert", insert)
        committed: Callable[..., Any] = log._drop
        monkeypatch.setattr(log, "_drop", lambda count: None)
        insert(batch)
        monkeypatch.setattr(log, "_drop", committed)
        raise psycopg.OperationalError("cut")

    monkeypatch.setattr(log, "_insert", cut)
    for number in range(5):
        log.append(b"%d" % number)
    log.write()
    until(lambda: _synced(log))
    log.append(b"5")
    log.close()
    assert database.read() == [b"%d" % number for number in range(6)]


def test_a_server_that_has_forgotten_what_it_committed_is_not_written_to(database: DatabasePlace) -> None:
    """As after a fail-over to a replica that lags behind."""
    log: Any = database.open()
    for number in range(5):
        log.append(b"%d" % number)
    log.write()
    log.sync()
    database.run(
        f"DELETE FROM log WHERE number > 2; UPDATE writer SET next = 3; SELECT pg_terminate_backend({log._pid})"
    )
    log.append(b"5")
    with pytest.raises(OSError, match="has 3 records of 5 that it had committed"):
        log.write()
        log.sync()
    log.abandon()
    assert database.read() == [b"0", b"1", b"2"]


def test_who_has_lost_the_lock_to_another_never_writes_again(database: DatabasePlace) -> None:
    from nubes.kernel.writing import Superseded

    first: Any = database.open()
    first.append(b"first's")
    first.write()
    first.sync()
    first.append(b"never promised")
    database.run(f"SELECT pg_terminate_backend({first._pid})")
    second = database.open()
    second.append(b"second's")
    second.write()
    second.sync()
    with pytest.raises(Superseded, match="another control plane has taken over"):
        first.write()
        first.sync()
    first.abandon()
    second.close()
    assert database.read() == [b"first's", b"second's"]


def test_even_with_a_connection_of_its_own_an_old_writer_is_kept_out(database: DatabasePlace) -> None:
    """Its epoch is checked in the transaction that writes, whatever became of its lock."""
    from nubes.kernel.writing import Superseded

    first: Any = database.open()
    first.append(b"first's")
    first.write()
    first.sync()
    database.run("UPDATE writer SET epoch = epoch + 1")  # as another that takes over does
    first.append(b"too late")
    with pytest.raises(Superseded):
        first.write()
        first.sync()
    first.abandon()
    assert database.read() == [b"first's"]
