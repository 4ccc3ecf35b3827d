"""The data folder forgets what nothing refers to any more, and only that."""

from __future__ import annotations

import os
import time

import pytest

from nubes.drivers.local import payload, retention
from nubes.functions import events as e
from nubes.functions.controller import Functions
from nubes.functions.spec import FunctionSpec


def test_objects_of_calls_and_kept_answers_stay(tmp_path):
    place = payload.Segments(str(tmp_path), durable=True)
    data = [payload.dumps(((bytes(200_000) + bytes([n]),), {}), place) for n in range(4)]
    paths = [payload.segment_of(one) for one in data]
    assert all(os.path.exists(path) for path in paths)
    controller = Functions(cold_start="fresh", cpu=1.0)
    controller.handle(e.Deployed("a", 1, (FunctionSpec(name="a/f", max_instances=1),)), 0.0)
    controller.handle(e.Submitted(1, "a/f", keep=True, input=data[0]), 1.0)
    controller.handle(e.Submitted(2, "a/f", keep=True, input=b"P"), 1.0)
    (start,) = controller.instances
    controller.handle(e.InstanceReady(start), 2.0)
    controller.handle(e.Finished(1, start, True, 0.5, output=data[1], keep=True), 3.0)
    assert retention.sweep(str(tmp_path), controller) == 0, "all are young: a call may be on its way in"
    for path in paths:
        os.utime(path, (0, 0))
    assert retention.sweep(str(tmp_path), controller) == 3, "call 1 is answered: its input is not needed, its answer is"
    assert [os.path.exists(path) for path in paths] == [False, True, False, False]


def test_a_clock_that_jumped_makes_no_object_old(tmp_path, monkeypatch):
    """What was written a moment ago is young by the clock that dates it, whatever this process takes for the time."""
    data = payload.dumps(((bytes(200_000),), {}), payload.Segments(str(tmp_path), durable=True))
    tomorrow = time.time() + 86_400.0
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    assert retention.remove_unused(str(tmp_path), set()) == 0
    assert os.path.exists(payload.segment_of(data))
    pytest.importorskip("obstore", reason="obstore is not installed")
    assert retention.remove_unused(tmp_path.as_uri(), set()) == 0
