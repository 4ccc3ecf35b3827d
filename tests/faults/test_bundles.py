"""After `kill -9` at any point, a bundle of the data folder has the state that the control plane recovers."""

from __future__ import annotations

import asyncio
import random
import threading
import time

import pytest

from nubes.drivers.local.journal import Journal
from nubes.drivers.local.state import open_state
from nubes.kernel.errors import NubesError
from nubes.kernel.fingerprint import fingerprint
from nubes.replay.bundle import load, of_folder


def recovered(folder):
    """The hash of what the real recovery code finds, and how many records it is the fold of."""
    journal = Journal(open_state(folder))

    async def state():
        return fingerprint(journal.recover(asyncio.get_running_loop())[0]), journal.log.count

    try:
        return asyncio.run(state())
    finally:
        journal.let_go()


def busy(work, folder, accepted, stop):
    n = 0
    while not stop.is_set():
        n += 1
        try:
            work.slow.spawn(str(folder), n, 0.02)
            accepted.set()
            if n % 3 == 0:
                work.plus.remote(n)
        except NubesError:  # what it was connected to is gone
            time.sleep(0.005)


@pytest.mark.parametrize("kills", [15, pytest.param(1000, marks=(pytest.mark.slow, pytest.mark.timeout(7200)))])
def test_the_state_in_a_bundle_is_the_state_that_is_recovered(plane, work, tmp_path, kills):
    chance = random.Random(kills)
    file, hashes, before = tmp_path / "bundle", set(), None
    for _ in range(kills):
        accepted, stop = threading.Event(), threading.Event()
        clients = [threading.Thread(target=busy, args=(work, tmp_path, accepted, stop)) for _ in range(3)]
        for client in clients:
            client.start()
        assert accepted.wait(30)
        time.sleep(chance.random() * 0.5)
        plane.kill()
        stop.set()
        for client in clients:
            client.join()
        about = of_folder(plane.folder, file)
        bundled, count = about["hash"], about["count"]
        assert recovered(plane.folder) == (bundled, count)
        opened, _ = load(file)
        assert opened.hash == bundled
        if before is not None:
            assert opened.go(before[1]).hash == before[0], "and it opens where the kill before was, too"
        before = bundled, count
        hashes.add(bundled)
        plane.start()
    assert len(hashes) > kills / 2, "the kills came at different points"
    assert count > 5 * kills, "and there was work to do"
