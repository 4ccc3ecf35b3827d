"""The log against a list, and against everything that disks, crashes and other processes do to it."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nubes.kernel import frames
from nubes.kernel.errors import LogCorrupt, Unavailable
from nubes.kernel.log import Log

BODIES = [b"", b"a", b"\0" * 9, b"nubeslog1\n", bytes(range(40)), b"z" * 200]


def fill(folder: Path, bodies: list[bytes], **options: Any) -> None:
    log = Log(folder, **options)
    for body in bodies:
        log.append(body)
        log.write()
    log.close()


def everything(folder: Path) -> list[bytes]:
    log = Log(folder)
    found = list(log.records(0))
    log.close()
    return found


def test_segments_roll_and_are_named_after_their_first_record(tmp_path: Path) -> None:
    fill(tmp_path, [b"x" * 30] * 10, segment_bytes=100)
    firsts = [int(path.stem) for path in sorted(tmp_path.glob("*.log"))]
    assert firsts[0] == 0
    assert len(firsts) > 2
    assert everything(tmp_path) == [b"x" * 30] * 10
    for first, following in itertools.pairwise(firsts):
        assert len(list(frames.frames((tmp_path / f"{first:016d}.log").read_bytes()))) == following - first


# -- damage -------------------------------------------------------------------------------------------------------


def goes_on(folder: Path, bodies: list[bytes], whole: int) -> None:
    """A log of `bodies` that was damaged at record `whole`, and opened, takes new records there and keeps them."""
    log = Log(folder, segment_bytes=100)
    assert list(log.records(0)) == bodies[:whole]
    assert log.count == whole
    numbers = [log.append(b"new"), log.append(b"newer")]
    assert numbers == [whole, whole + 1]
    log.write()
    log.sync()
    log.close()
    again = Log(folder, segment_bytes=100)
    assert again.findings == []
    assert list(again.records(0)) == [*bodies[:whole], b"new", b"newer"]
    again.close()


def segment_ends(folder: Path) -> list[tuple[Path, list[int]]]:
    """For each segment: the offset behind its head, then behind each of its records."""
    return [
        (path, [len(frames.SEGMENT), *(end for _, end in frames.frames(path.read_bytes()))])
        for path in sorted(folder.glob("*.log"))
    ]


def test_every_truncation_of_the_last_segment(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    fill(origin, BODIES * 2, segment_bytes=150)
    path, ends = segment_ends(origin)[-1]
    before = int(path.stem)
    assert len(ends) > 2
    for size in range(path.stat().st_size):
        folder = tmp_path / str(size)
        shutil.copytree(origin, folder)
        os.truncate(folder / path.name, size)
        whole = before + sum(end <= size for end in ends[1:])
        torn = size not in ends
        log = Log(folder)
        assert bool(log.findings) == torn
        if torn:
            assert "was cut short by a crash" in log.findings[0]
            assert f"Record {whole} in {path.name}" in log.findings[0]
            aside = next(folder.glob("*.damaged"))
            good = max([end for end in ends if end <= size], default=0)
            assert aside.read_bytes() == path.read_bytes()[good:size]
        log.close()
        goes_on(folder, BODIES * 2, whole)


def test_single_byte_flips_anywhere(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    bodies = [b for b in BODIES * 3 if b]
    fill(origin, bodies, segment_bytes=150)
    segments = segment_ends(origin)
    r = random.Random(1)
    places = [(path, ends, offset) for path, ends in segments for offset in range(path.stat().st_size)]
    for path, ends, offset in r.sample(places, 300):
        folder = tmp_path / f"{path.stem}-{offset}"
        shutil.copytree(origin, folder)
        raw = bytearray((folder / path.name).read_bytes())
        raw[offset] ^= 1 << r.randrange(8)
        (folder / path.name).write_bytes(raw)
        whole = int(path.stem) + sum(end <= offset for end in ends[1:])
        log = Log(folder, segment_bytes=100)
        assert f"Record {whole} in {path.name}" in log.findings[0]
        assert list(log.records(0)) == bodies[:whole]
        log.close()
        good = ends[whole - int(path.stem)] if offset >= len(frames.SEGMENT) else 0
        aside = b"".join(p.read_bytes() for p in folder.glob(f"{path.stem}.{whole}.damaged"))
        assert aside == bytes(raw[good:])
        behind = [p for p, _ in segments if p.name > path.name]
        for later in behind:  # nothing that could be of use to somebody is thrown away
            assert (folder / f"{later.name}.damaged").read_bytes() == later.read_bytes()
        assert len(log.findings) == 1 + len(behind)
        goes_on(folder, bodies, whole)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_bytes_in_place_of_a_tail(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("log")
    fill(folder, BODIES)
    path, ends = segment_ends(folder)[0]
    raw = path.read_bytes()
    cut = data.draw(st.integers(0, len(raw)))
    tail = data.draw(st.binary(max_size=40))
    path.write_bytes(raw[:cut] + tail)
    found = everything(folder)
    certain = sum(end <= cut for end in ends[1:]) if cut >= len(frames.SEGMENT) else 0
    assert found[:certain] == BODIES[:certain]


def test_zeros_behind_the_last_record_are_no_records(tmp_path: Path) -> None:
    fill(tmp_path, BODIES)
    path = tmp_path / f"{0:016d}.log"
    path.write_bytes(path.read_bytes() + b"\0" * 4096)
    assert everything(tmp_path) == BODIES


def test_damage_twice_at_the_same_record_keeps_both_remains(tmp_path: Path) -> None:
    fill(tmp_path, [b"one", b"two"])
    for body in (b"two", b"three"):
        path = tmp_path / f"{0:016d}.log"
        path.write_bytes(path.read_bytes().replace(body, b"#" * len(body)))
        log = Log(tmp_path)
        assert list(log.records(0)) == [b"one"]
        log.append(b"three")
        log.close()
    remains = sorted(path.read_bytes()[8:] for path in tmp_path.glob("*.damaged*"))
    assert remains == [b"###", b"#####"]


def test_a_missing_segment_ends_the_log_before_it(tmp_path: Path) -> None:
    fill(tmp_path, [b"x" * 90] * 4, segment_bytes=100)
    sorted(tmp_path.glob("*.log"))[1].unlink()
    log = Log(tmp_path)
    assert "are missing, from record 2 on" in log.findings[0] or "are missing, from record 1 on" in log.findings[0]
    assert list(log.records(0)) == [b"x" * 90] * log.count
    assert 0 < log.count < 4
    log.close()


def test_a_log_without_its_beginning_is_an_error(tmp_path: Path) -> None:
    fill(tmp_path, [b"x" * 90] * 4, segment_bytes=100)
    sorted(tmp_path.glob("*.log"))[0].unlink()
    for _ in range(2):  # the second time too: the lock was let go of
        with pytest.raises(LogCorrupt, match="starts at record"):
            Log(tmp_path)
    assert len(list(tmp_path.glob("*.log"))) >= 2


# -- snapshots ----------------------------------------------------------------------------------------------------


def with_snapshots(folder: Path, keep: bool = True) -> None:
    """Records 0..9, each in a segment of its own, with states of the first 3, 5 and 8."""
    log = Log(folder, segment_bytes=20)
    for number in range(10):
        log.append(b"record %d" % number)
        log.write()
        if number in (2, 4, 7):
            log.save_snapshot(b"state of %d" % (number + 1), keep_segments=keep)
    log.close()


def numbers(log: Log) -> list[int]:
    return [int(body.split()[1]) for body in log.records()]


def test_the_two_newest_snapshots_stay(tmp_path: Path) -> None:
    with_snapshots(tmp_path)
    assert [int(path.stem) for path in sorted(tmp_path.glob("*.snap"))] == [5, 8]
    log = Log(tmp_path)
    assert (log.snapshot_at, log.snapshot, log.first, log.count) == (8, b"state of 8", 0, 10)
    assert numbers(log) == [8, 9]
    log.close()


def test_segments_that_two_snapshots_cover_may_go(tmp_path: Path) -> None:
    with_snapshots(tmp_path, keep=False)
    assert min(int(path.stem) for path in tmp_path.glob("*.log")) == 5
    (tmp_path / f"{8:016d}.snap").write_bytes(b"nubessnap1\nwrong")
    log = Log(tmp_path)
    assert (log.snapshot_at, log.snapshot, log.first) == (5, b"state of 5", 5)
    assert numbers(log) == [5, 6, 7, 8, 9]
    log.close()


@pytest.mark.parametrize("offset", [0, 12, -1])
def test_a_damaged_snapshot_gives_way_to_an_older_one(tmp_path: Path, offset: int) -> None:
    with_snapshots(tmp_path)
    path = tmp_path / f"{8:016d}.snap"
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 4
    path.write_bytes(raw)
    log = Log(tmp_path)
    assert log.snapshot == b"state of 5"
    assert numbers(log) == [5, 6, 7, 8, 9]
    assert log.findings == [
        f"Snapshot {path.name} is damaged, and now {path.name}.damaged; an older state and the log take its place."
    ]
    log.close()
    (tmp_path / f"{5:016d}.snap").write_bytes(b"")
    log = Log(tmp_path)
    assert (log.snapshot_at, log.snapshot) == (0, None)
    assert numbers(log) == list(range(10))
    log.close()


def test_damaged_snapshots_without_the_segments_they_covered_are_an_error(tmp_path: Path) -> None:
    with_snapshots(tmp_path, keep=False)
    for path in tmp_path.glob("*.snap"):
        path.write_bytes(b"")
    with pytest.raises(LogCorrupt, match="starts at record 5, but the newest state covers 0"):
        Log(tmp_path)


def test_damage_before_the_newest_state_costs_nothing_behind_it(tmp_path: Path) -> None:
    with_snapshots(tmp_path)
    path = sorted(tmp_path.glob("*.log"))[2]
    path.write_bytes(path.read_bytes()[:-1])
    log = Log(tmp_path, segment_bytes=20)
    assert log.snapshot == b"state of 8"
    assert numbers(log) == [8, 9]
    assert (log.first, log.count) == (3, 10)
    assert "Record 2 in" in log.findings[0]
    assert len(list(tmp_path.glob("*.log.damaged"))) == 3
    log.append(b"record 10")
    log.close()
    log = Log(tmp_path)
    assert log.findings == []
    assert numbers(log) == [8, 9, 10]
    log.close()


def test_a_log_that_ends_before_its_state_goes_on_behind_it(tmp_path: Path) -> None:
    with_snapshots(tmp_path)
    for path in sorted(tmp_path.glob("*.log"))[6:]:
        path.unlink()
    log = Log(tmp_path)
    assert (log.snapshot, log.first, log.count) == (b"state of 8", 8, 8)
    assert "ends at record 6; the state of 8 records takes its place" in log.findings[0]
    assert log.append(b"record 8") == 8
    log.close()
    log = Log(tmp_path)
    assert log.findings == []
    assert numbers(log) == [8]
    log.close()


# -- other writers, full disks, other threads -----------------------------------------------------------------------


class FullDisk:
    """An `os.write` that finds room for `room` bytes in all."""

    def __init__(self, room: int) -> None:
        self.room = room

    def __call__(self, fd: int, data: Any) -> int:
        taken = min(self.room, len(data))
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= taken
        return WRITE(fd, bytes(data[:taken]))


WRITE = os.write


@pytest.mark.parametrize("segment_bytes", [60, 1 << 20])
def test_full_disk_at_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segment_bytes: int) -> None:
    bodies = [b"%d" % n * 7 for n in range(12)]
    for room in range(0, 240, 3):
        folder = tmp_path / str(room)
        log = Log(folder, segment_bytes)
        disk = FullDisk(room)
        monkeypatch.setattr(os, "write", disk)
        failures = 0
        for body in bodies:
            log.append(body)
            try:
                log.write()
            except OSError:
                failures += 1
        assert failures or room > sum(8 + len(body) for body in bodies) - 3
        disk.room = 1 << 20
        log.write()
        log.append(b"after")
        log.close()
        monkeypatch.undo()
        log = Log(folder)
        assert log.findings == []
        assert list(log.records(0)) == [*bodies, b"after"]
        log.close()


def test_a_crash_on_a_full_disk_loses_only_what_was_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(tmp_path)
    log.append(b"written")
    log.write()
    monkeypatch.setattr(os, "write", FullDisk(20))
    log.append(b"half " * 10)
    with pytest.raises(OSError, match="No space"):
        log.write()
    os.close(log._lock)
    monkeypatch.undo()
    assert everything(tmp_path) == [b"written"]


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("only root may mount a small disk")
    try:
        folder = disk / "log"
        log = Log(folder, segment_bytes=8192)
        bodies = [b"%06d" % n * 100 for n in range(200)]
        failed = 0
        for body in bodies:
            log.append(body)
            try:
                log.write()
            except OSError as error:
                assert error.errno == errno.ENOSPC
                failed += 1
        assert failed > 50
        with pytest.raises(OSError, match="No space"):
            log.save_snapshot(b"s" * 4096)
        assert not list(folder.glob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
        log.save_snapshot(b"s" * 4096)
        log.close()
        log = Log(folder)
        assert log.findings == []
        assert list(log.records(0)) == bodies
        log.close()
        subprocess.run(["mount", "-o", "remount,size=4k", disk], check=False)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="cannot be opened: Not a directory"):
        Log(tmp_path / "file" / "log")


def test_sync_in_another_thread_while_segments_roll(tmp_path: Path) -> None:
    log = Log(tmp_path, segment_bytes=200)
    errors: list[BaseException] = []
    stop = threading.Event()

    def sync() -> None:
        while not stop.is_set():
            try:
                log.sync()
            except BaseException as error:
                errors.append(error)

    thread = threading.Thread(target=sync)
    thread.start()
    for number in range(300):
        log.append(b"%d" % number * 20)
        log.write()
    stop.set()
    thread.join()
    log.close()
    assert errors == []
    assert len(everything(tmp_path)) == 300
