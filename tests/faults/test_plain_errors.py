"""What goes wrong is said in one plain sentence, with what to do next, and loses nothing."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from killable import Plane, until

import nubes
from nubes import client as clients
from nubes.drivers.local.sessions import withdraw
from nubes.functions.events import Cancelled
from nubes.kernel.errors import NotFound, Unavailable, UnknownPolicy, UsageError


def test_an_argument_that_cannot_be_pickled(plane, work):
    with pytest.raises(UsageError, match="cannot be sent to the function"):
        work.plus.remote(threading.Lock())
    assert work.plus.remote(1) == 2


def test_a_wrong_policy_name_gets_the_nearest(plane, work):
    with pytest.raises(UnknownPolicy, match="hybrid-histogram"):
        clients.connect().ask("set_policy", seam="keep-alive", policy="hybrid-histogramm")
    with pytest.raises(UnknownPolicy, match="fixed-window"):
        nubes.App("x").function(keep_alive="fixed-windw")(lambda: None)


def test_a_wrong_option_names_the_right_ones():
    with pytest.raises(UsageError, match="memory"):
        nubes.App("x").function(memroy="1GiB")(lambda: None)
    with pytest.raises(UsageError, match="MiB"):
        nubes.App("x").function(memory=512)(lambda: None)
    with pytest.raises(UsageError, match="parentheses"):
        nubes.App("x").function(lambda: None)


def test_a_function_that_is_not_deployed(plane, work):
    with pytest.raises(NotFound, match="plus"):
        nubes.Function.from_name("work", "minus")


def test_two_control_planes_on_one_folder(plane, work):
    argv = [sys.executable, "-m", "nubes.drivers.local.server", str(plane.folder), "-1", "-1"]
    second = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    assert second.returncode == 1
    assert str(plane.process.pid) in second.stderr
    assert "nubes down" in second.stderr
    assert work.plus.remote(1) == 2


def test_a_damaged_log_loses_only_what_lies_behind_the_damage(plane, work, tmp_path):
    first = work.plus.spawn(1).object_id
    assert nubes.FunctionCall.from_id(first).get(timeout=10) == 2
    until(lambda: not plane.status()["calls"])
    plane.kill()
    segment = max((plane.folder / "log").glob("*.log"))
    whole = segment.read_bytes()
    plane.start()
    second = work.plus.spawn(5).object_id
    assert nubes.FunctionCall.from_id(second).get(timeout=10) == 6
    plane.kill()
    raw = bytearray(segment.read_bytes())
    raw[len(whole) + 40] ^= 0xFF  # in what came after the first answer
    segment.write_bytes(raw)
    plane.start()
    assert "is damaged" in plane.complaint()
    assert any(plane.folder.joinpath("log").glob("*.damaged"))
    assert nubes.FunctionCall.from_id(first).get(timeout=10) == 2
    assert work.plus.remote(7) == 8


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk_refuses_what_it_cannot_keep(tmp_path, monkeypatch):
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("tmpfs cannot be mounted here")
    data = folder / "data"
    data.mkdir()
    monkeypatch.setenv("NUBES_DATA", str(data))
    clients.disconnect()
    plane = Plane(data).start()
    try:
        app = nubes.App("disk")
        plus = app.function(serialized=True)(lambda n: n + 1)

        @app.function(serialized=True)
        def grow(n):
            time.sleep(1)
            return bytes(n)

        app.deploy()
        kept = plus.spawn(1)
        assert kept.get(timeout=10) == 2
        large = grow.spawn(200_000)
        filler = open(folder / "filler", "wb", buffering=0)
        with pytest.raises(OSError, match="No space"):
            while True:
                filler.write(b"\0" * 65536)
        while True:  # to the last byte
            try:
                filler.write(b"\0")
            except OSError:
                break
        with pytest.raises(Unavailable, match="argument cannot be put.*space"):
            plus.spawn(bytes(1 << 20))
        with pytest.raises(Unavailable, match="[Ss]pace"):
            for n in range(2000):
                plus.spawn(n)
        with pytest.raises(Unavailable, match="not accepted"):
            plus.with_key("once").spawn(41)
        assert plus.remote(3) == 4, "what needs no disk goes on"
        time.sleep(1.5)  # the large answer finds no room
        filler.truncate(0)
        filler.close()
        until(lambda: not plane.status()["full"], what="the disk is usable again")
        assert len(large.get(timeout=20)) == 200_000, "it waited for room"
        again = plus.spawn(10)
        assert again.get(timeout=10) == 11
        assert plus.with_key("once").spawn(41).get(timeout=10) == 42, "it was not accepted: this is the first one"
        plane.kill()
        plane.start()
        assert nubes.FunctionCall.from_id(kept.object_id).get(timeout=10) == 2
        assert nubes.FunctionCall.from_id(again.object_id).get(timeout=10) == 11
    finally:
        plane.stop()
        subprocess.run(["umount", "-l", str(folder)])


def test_a_call_that_is_done_before_it_could_be_written_down_is_not_withdrawn():
    """It would be done twice, by a caller that was told that it had not been accepted."""
    fed = []
    plane = SimpleNamespace(controller=SimpleNamespace(results={7: "done"}), feed=fed.append)
    assert "with an idempotency key it may safely be made again" in withdraw(plane, 7)
    assert fed == []
    assert "not accepted" in withdraw(plane, 8)
    assert fed == [Cancelled(8, terminate=True, refused=True)]


def test_a_control_plane_that_goes_away_while_one_connects_to_it(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()

        def accept():
            connection, _ = listener.accept()
            select.select([connection], [], [])
            connection.close()  # what it was sent is not read: a reset

        thread = threading.Thread(target=accept)
        thread.start()
        with pytest.raises(Unavailable, match="went away"):
            clients.Client(str(tmp_path / "socket"))
        thread.join()
