"""Printed lines on disk: kept, rotated, dropped, followed, and never in the way."""

from __future__ import annotations

import itertools
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from nubes.drivers.local import logstore
from nubes.drivers.local.logstore import LogStore, follow, read, wanted

ALL = wanted()


class Loop:
    """Calls what is to be called later when told to."""

    def __init__(self) -> None:
        self.later: list[Any] = []

    def call_later(self, delay_s: float, then: Any) -> None:
        self.later.append(then)

    def run(self) -> None:
        while self.later:
            self.later.pop(0)()


def store(folder: Path, **limits: Any) -> tuple[LogStore, Loop, Any]:
    loop, clock = Loop(), itertools.count(1000)
    return LogStore(folder, loop, lambda: float(next(clock)), **limits), loop, clock  # type: ignore[arg-type]


def texts(folder: Path, *args: Any) -> list[str]:
    return [line.text for line in read(folder, *(args or (ALL,)))]


def test_lines_are_kept_and_selected(tmp_path: Path) -> None:
    kept, loop, _ = store(tmp_path / "logs")
    kept.add(7, "a/f", "stdout", "one\ntwo\n")
    kept.add(8, "a/g", "stderr", "three")
    kept.add(0, "ab/f", "stdout", "füur \x1b[0m")
    assert texts(tmp_path / "logs") == []  # not before the loop comes round
    loop.run()
    where = tmp_path / "logs"
    assert texts(where) == ["one", "two", "three", "füur \x1b[0m"]
    assert texts(where, wanted("a")) == ["one", "two", "three"]
    assert texts(where, wanted("a/f")) == ["one", "two"]
    assert texts(where, wanted(call=8)) == ["three"]
    assert texts(where, wanted(search="w")) == ["two"]
    assert texts(where, wanted(since_s=1001.5)) == ["füur \x1b[0m"]
    assert texts(where, ALL, 2) == ["three", "füur \x1b[0m"]
    assert texts(where, ALL, 0) == []


def test_files_are_rotated_by_size_and_dropped_by_total_and_age(tmp_path: Path) -> None:
    kept, _, _ = store(tmp_path, file_bytes=200, total_bytes=1_000)
    for n in range(40):
        kept.add(n, "a/f", "stdout", f"line {n:03d}")
        kept.flush()
    kept.close()
    files = sorted(tmp_path.glob("*.jsonl"))
    assert len(files) > 2
    assert sum(f.stat().st_size for f in files) <= 1_000 + 400  # the one being written comes on top
    shown = texts(tmp_path)
    assert shown == [f"line {n:03d}" for n in range(40 - len(shown), 40)]
    for file in files:
        os.utime(file, (0, 0))
    again, _, _ = store(tmp_path, age_s=500.0)
    again.add(0, "a/f", "stdout", "new")
    again.close()
    assert texts(tmp_path) == ["new"]


def test_a_torn_line_costs_itself_only(tmp_path: Path) -> None:
    kept, _, _ = store(tmp_path)
    kept.add(1, "a/f", "stdout", "good")
    kept.close()
    file = next(tmp_path.glob("*.jsonl"))
    file.write_bytes(file.read_bytes() + b'{"at": 3, "fun\nnot json\n' + b'{"at": half')
    assert texts(tmp_path) == ["good"]


def test_a_full_disk_costs_lines_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, _, _ = store(tmp_path)

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    kept.add(1, "a/f", "stdout", "before")
    kept.flush()
    with monkeypatch.context() as patch:
        patch.setattr(logstore.os, "write", full)
        kept.add(1, "a/f", "stdout", "lost\nlost")
        kept.flush()
    kept.add(1, "a/f", "stdout", "after")
    kept.close()
    assert texts(tmp_path) == ["before", "after"]
    assert kept.lost == 2
    assert "No space left" in capsys.readouterr().err


def test_who_follows_sees_what_comes_across_files(tmp_path: Path) -> None:
    kept, _, _ = store(tmp_path, file_bytes=1)
    kept.add(1, "a/f", "stdout", "old")
    kept.flush()
    seen: list[str] = []

    def watch() -> None:
        for line in follow(tmp_path, wanted("a/f")):
            seen.append(line.text)
            if line.text == "last":
                return

    watching = threading.Thread(target=watch)
    watching.start()
    for text in ("new", "newer", "last"):
        time.sleep(0.15)
        kept.add(1, "a/f", "stdout", text)
        kept.add(1, "b/f", "stdout", "not this")
        kept.flush()
    watching.join(10)
    kept.close()
    assert seen == ["old", "new", "newer", "last"]
