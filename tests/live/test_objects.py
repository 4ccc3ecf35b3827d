"""Large durable arguments and results in object stores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nubes.drivers.local import objects, payload, retention, state
from nubes.functions import events as e
from nubes.functions.controller import Functions
from nubes.functions.spec import FunctionSpec
from nubes.kernel.errors import NotFound, Unavailable, UsageError

LARGE = 200_000


@pytest.fixture(params=["s3", "memory", "file"])
def base(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place for objects: an URL or, of `file://`, the folder that it stands for."""
    pytest.importorskip("obstore", reason="obstore is not installed")
    if request.param == "file":
        (tmp_path / "a b").mkdir()
        return objects.place((tmp_path / "a b").as_uri(), tmp_path)
    if request.param == "s3":
        for name, value in request.getfixturevalue("s3").items():
            monkeypatch.setenv(name, value)
        objects._made.cache_clear()
    return {"s3": f"s3://nubes/{tmp_path.name}/x", "memory": f"memory:///{tmp_path.name}"}[request.param]


def test_what_is_put_comes_back_writable_and_private(base: str) -> None:
    value = {
        "a": np.arange(100_003),
        "b": np.full(6 << 20, 120, np.uint8),
        "c": np.ones((300, 301), order="F"),
        "small": [1],
    }
    data = payload.dumps(value, payload.Segments(base, durable=True))
    assert len(data) < 10_000
    assert payload.segment_of(data).startswith(base)
    assert payload.is_object(payload.segment_of(data))
    first, second = payload.loads(data), payload.loads(data)
    np.testing.assert_array_equal(first["b"], value["b"])
    first["a"][0] = 7
    np.testing.assert_array_equal(second["a"], value["a"])
    np.testing.assert_array_equal(first["c"], value["c"])
    raw = bytes(range(256)) * 1000
    assert payload.loads(payload.dumps(((raw,), {"more": raw}), payload.Segments(base, durable=True)))[1]["more"] == raw


def test_only_old_objects_that_nothing_refers_to_are_removed(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objects.claim(base, "mine")
    place = payload.Segments(base, durable=True)
    data = [payload.dumps(((bytes(LARGE) + bytes([n]),), {}), place) for n in range(4)]
    controller = Functions(cold_start="fresh", cpu=1.0)
    controller.handle(e.Deployed("a", 1, (FunctionSpec(name="a/f", max_instances=1),)), 0.0)
    controller.handle(e.Submitted(1, "a/f", keep=True, input=data[0]), 1.0)
    controller.handle(e.Submitted(2, "a/f", keep=True, input=data[1]), 1.0)
    (start,) = controller.instances
    controller.handle(e.InstanceReady(start), 2.0)
    controller.handle(e.Finished(1, start, True, 0.5, output=data[2], keep=True), 3.0)
    assert retention.sweep(base, controller) == 0, "all are young: a call may be on its way in"
    monkeypatch.setattr(retention, "YOUNG_S", -10.0)
    assert retention.sweep(base, controller) == 2, "the input of call 1 and what nobody ever handed in"
    assert retention.sweep(base, controller) == 0
    assert payload.loads(data[1])[0][0][-1] == 1
    assert payload.loads(data[2])[0][0][-1] == 2
    with pytest.raises((NotFound, FileNotFoundError)):
        payload.loads(data[0])
    objects.claim(base, "mine")  # whose they are is still known


def test_two_clouds_do_not_share_a_place(base: str) -> None:
    objects.claim(base, "mine")
    objects.claim(base, "mine")
    with pytest.raises(UsageError, match="those of another nubes"):
        objects.claim(base, "another's")


def test_a_claim_that_fails_lets_go_of_the_folder(tmp_path: Path) -> None:
    objects.claim(str(tmp_path / "objects"), "another's")
    with pytest.raises(UsageError, match="those of another nubes"):
        state.open_state(tmp_path / "data", objects=(tmp_path / "objects").as_uri())
    state.open_state(tmp_path / "data").log.close()


def test_a_store_that_cannot_be_reached_is_said(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**s3, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(objects, "_RETRIES", 0)
    objects._made.cache_clear()
    place = payload.Segments("s3://nubes/unreachable", durable=True)
    with pytest.raises(Unavailable, match="s3://nubes/unreachable.* cannot be written"):
        payload.dumps(bytes(LARGE), place)
    objects._made.cache_clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3["AWS_ENDPOINT_URL"])
    with pytest.raises(Unavailable, match="NoSuchBucket|not found"):
        payload.dumps(bytes(LARGE), payload.Segments("s3://no-such-bucket/x", durable=True))
    with pytest.raises(NotFound, match="is gone"):
        objects.get("s3://nubes/nothing")
    objects._made.cache_clear()


@pytest.mark.parametrize("text", ["bucket", "s3://", "bucket/prefix"])
def test_what_is_no_url_is_said(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no URL of an object store"):
        objects.place(text, tmp_path)


def test_a_fork_is_told_that_it_cannot(s3: dict[str, str]) -> None:
    script = (
        "import os\nfrom nubes.drivers.local import objects\n"
        "m = [memoryview(b'x')], [(0, 1)]\nobjects.put('s3://nubes/fork', *m)\n"
        "if os.fork() == 0:\n"
        "    try: objects.put('s3://nubes/fork', *m)\n"
        "    except Exception as error: print(type(error).__name__, error, flush=True)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **s3},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout.startswith("Unavailable This process is a fork"), done.stderr
