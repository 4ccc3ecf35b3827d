"""What a control plane that was killed left in shared memory is removed by whichever is started next."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from killable import Plane

from nubes import client as clients
from nubes.drivers.local.limits import Limits
from nubes.drivers.local.shared_folder import SharedFolder, remove_leftovers


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="there is no /dev/shm here")
def test_any_control_plane_clears_up_after_one_that_was_killed(tmp_path, monkeypatch):
    folders = [tmp_path / name / "data" for name in ("killed", "alive", "next")]
    planes = []
    shared = []
    for folder in folders:
        folder.mkdir(parents=True)
        monkeypatch.setenv("NUBES_DATA", str(folder))
        clients.disconnect()
        if folder == folders[2]:
            planes[0].kill()
            assert shared[0].is_dir()
        planes.append(Plane(folder).start())
        shared.append(Path(clients.connect(start=False).shared))
        (shared[-1] / "seg-0-left").write_bytes(bytes(1 << 20))
    try:
        assert not shared[0].exists()
        assert shared[1].is_dir()
        assert list(shared[1].glob("seg-*"))  # that of one that is alive is left alone
        planes[0].start()
        assert shared[0].is_dir()
    finally:
        clients.disconnect()
        for plane in planes:
            plane.stop()
    assert not any(path.exists() for path in shared)


def test_only_what_is_certainly_left_over_is_removed(tmp_path):
    alive = SharedFolder("alive", tmp_path, memory=tmp_path)
    prefix = f"nubes-{os.getuid()}-"
    dead, unknown = tmp_path / f"{prefix}dead", tmp_path / f"{prefix}unknown"
    for path in (dead, unknown):
        path.mkdir()
        (path / "seg-1").write_bytes(b"x")
    (dead / "lock").touch()
    (tmp_path / f"{prefix}link").symlink_to(dead)
    assert remove_leftovers(tmp_path, prefix) == [dead]
    assert (dead.exists(), unknown.exists(), alive.path.exists()) == (False, True, True)
    alive.close()
    assert not alive.path.exists()


def test_without_shared_memory_the_data_folder_takes_its_place(tmp_path):
    folder = SharedFolder("x", tmp_path, memory=tmp_path / "missing")
    assert folder.path.parent == tmp_path
    folder.close()


def test_groups_are_removed_once_what_was_killed_in_them_is_gone(tmp_path):
    for controller in ("memory", "cpu"):
        (tmp_path / controller).mkdir()
    limits = Limits("cloud", tmp_path)
    group = limits.take(1.0, 1 << 20)
    busy = tmp_path / "memory" / "cloud" / group / "a process that is about to be gone"
    busy.touch()
    ends = threading.Timer(0.1, busy.unlink)
    ends.start()
    limits.close()
    ends.join()
    assert not (tmp_path / "memory" / "cloud").exists()
    assert not (tmp_path / "cpu" / "cloud").exists()
