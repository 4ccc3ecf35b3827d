"""What simulated faults found in the code, each as a case of its own; and the simulated disk, by hand."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from nubes.drivers.local import wire
from nubes.drivers.local.sessions import Session
from nubes.drivers.sim.faults.disk import Crash, SimDisk
from nubes.drivers.sim.faults.pages import SECTOR
from nubes.drivers.sim.faults.plan import Plan
from nubes.drivers.sim.faults.sessions import SimSession
from nubes.drivers.sim.faults.world import World
from nubes.functions import events as e
from nubes.functions.controller import Functions
from nubes.functions.spec import FunctionSpec, Retries
from nubes.kernel.clock import WallClock
from nubes.kernel.errors import AlreadyRunning, Unavailable
from nubes.kernel.log import Log, read

FOLDER = Path("log")
BODIES = [b"%d" % n * 30 for n in range(12)]


def disk(seed: int = 0) -> SimDisk:
    return SimDisk(random.Random(seed))


def filled(on: SimDisk, bodies: list[bytes], **options: Any) -> Log:
    log = Log(FOLDER, disk=on, **options)
    for body in bodies:
        log.append(body)
    log.write()
    return log


# -- the disk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_a_power_cut_keeps_what_was_synced_and_any_part_of_the_rest(seed: int) -> None:
    d = disk(seed)
    fd = d.create(FOLDER / "a")
    d.write(fd, memoryview(b"x" * 3 * SECTOR))
    d.sync(fd)
    d.sync_folder(FOLDER)
    d.write(fd, memoryview(b"y" * 3 * SECTOR))
    d.power_cut()
    left = d.read(FOLDER / "a")
    assert left.startswith(b"x" * 3 * SECTOR)
    assert len(left) <= 6 * SECTOR
    assert set(left[3 * SECTOR :]) <= {ord("y"), 0}


def test_names_are_lost_unless_the_folder_is_synced() -> None:
    found = set()
    for seed in range(40):
        d = disk(seed)
        d.sync(d.create(FOLDER / "a"))
        d.power_cut()
        found.add(d.exists(FOLDER / "a"))
    assert found == {True, False}


def test_after_a_failed_sync_another_says_nothing() -> None:
    lost = 0
    for seed in range(40):
        d = disk(seed)
        fd = d.create(FOLDER / "a")
        d.sync_folder(FOLDER)
        d.write(fd, memoryview(b"x" * SECTOR))
        d.failing = 1
        with pytest.raises(OSError, match="Input/output"):
            d.sync(fd)
        d.sync(fd)
        d.power_cut()
        lost += d.read(FOLDER / "a") != b"x" * SECTOR
    assert 0 < lost < 40


def test_a_process_that_is_gone_does_nothing_more() -> None:
    d = disk()
    fd = d.create(FOLDER / "a")
    d.crash_in = 0
    with pytest.raises(Crash):
        d.write(fd, memoryview(b"x"))
    with pytest.raises(Crash):
        d.remove(FOLDER / "a")
    with pytest.raises(Crash):
        d.close(fd)
    d.killed()
    assert d.read(FOLDER / "a") in (b"", b"x")


# -- the log -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forgetful", [False, True])
@pytest.mark.parametrize("segment_bytes", [100, 1 << 20])
def test_what_a_failed_flush_may_have_lost_is_written_again(forgetful: bool, segment_bytes: int) -> None:
    for seed in range(30):
        d = disk(seed)
        d.forgetful = forgetful
        log = filled(d, BODIES[:4], segment_bytes=segment_bytes)
        log.sync()
        log.append(BODIES[4])
        log.write()
        d.failing = 1
        with pytest.raises(OSError, match="Input/output"):
            log.sync()
        for body in BODIES[5:]:
            log.append(body)
        log.write()
        log.sync()
        d.power_cut()
        assert list(Log(FOLDER, disk=d).records(0)) == BODIES
        assert list(read(FOLDER, d)) == BODIES


def test_what_a_killed_process_left_is_safe_once_the_log_is_open() -> None:
    for seed in range(30):
        d = disk(seed)
        log = filled(d, BODIES, segment_bytes=100)
        d.failing = seed % 2
        if d.failing:  # it failed to flush, and then nobody knew
            with pytest.raises(OSError, match="Input/output"):
                log.sync()
        d.killed()
        assert list(Log(FOLDER, disk=d).records(0)) == BODIES
        d.power_cut()
        assert list(Log(FOLDER, disk=d).records(0)) == BODIES


def test_a_disk_that_fails_as_the_log_opens_is_named_and_nothing_is_lost() -> None:
    d = disk()
    filled(d, BODIES).close()
    d.failing = 1
    with pytest.raises(Unavailable, match="cannot be opened: Input/output error"):
        Log(FOLDER, disk=d)
    log = Log(FOLDER, disk=d)
    assert list(log.records(0)) == BODIES
    with pytest.raises(AlreadyRunning):
        Log(FOLDER, disk=d)


def test_a_power_cut_while_a_damaged_log_is_mended_leaves_a_trace_of_the_damage() -> None:
    for seed in range(60):
        d = disk(seed)
        filled(d, BODIES).close()
        d.stable = dict(d.files)
        name = min(d.files)
        d.files[name].now[60] ^= 1
        d.files[name].stable[60] ^= 1
        d.crash_in = seed % 12
        try:
            first = Log(FOLDER, disk=d)
            said = bool(first.findings)
        except Crash:
            said = False
        d.power_cut()
        said |= bool(Log(FOLDER, disk=d).findings)
        assert said or any(".damaged" in name for name in d.files)


# -- the journal and the clock -----------------------------------------------------------------------------------------


def world(**plan: Any) -> World:
    """A control plane that was started, without anybody yet."""
    made = World(1, Plan(clients=0, **plan))
    made.boot()
    return made


def test_time_goes_on_when_a_snapshot_covers_the_whole_log_and_the_clock_was_set_back() -> None:
    w = world()
    w.plane.feed(e.Removed("nobody"))
    before = w.plane.now
    w.plane.journal.close()
    w.plane.journal.let_go()
    w.crash("it ended", power=True)
    w.clocks.set(-3600.0)
    w.boot()
    assert w.plane.journal.log.snapshot_at > 0
    assert w.plane.now >= before


def test_a_wall_clock_never_shows_less_than_it_is_given() -> None:
    times = [100.0]
    clock = WallClock(500.0, lambda: 100.0, lambda: times[0])
    assert clock() == 500.0
    times[0] = 101.5
    assert clock() == 501.5


# -- calls with a key --------------------------------------------------------------------------------------------------

SPEC = FunctionSpec(name="a/f", cpu=0.0)


def test_a_call_that_was_refused_leaves_its_key_free() -> None:
    c = Functions()
    c.handle(e.Deployed("a", 1, (SPEC,)), 1.0)
    c.handle(e.Submitted(1, "a/f", True, key="k", input=b"x"), 2.0)
    c.handle(e.Cancelled(1, True, True), 3.0)
    assert (dict(c.results), c.keys) == ({}, {})
    c.handle(e.Submitted(2, "a/f", True, key="k", input=b"x"), 4.0)
    assert list(c.calls) == [2]
    c.handle(e.Cancelled(2), 5.0)
    assert (c.results[2].status, c.keys) == ("CANCELLED", {("a/f", "k"): 2}), "a caller's own choice is an answer"


class Told(SimSession):
    """A session that only notes what it says."""

    def __init__(self, w: World) -> None:
        _, far = w.network.connect("client", None, w.life)
        super().__init__(w, far, 1)
        self.said: list[list[Any]] = []

    def _send(self, frame: bytes, take_back: Any = None) -> None:
        self.said.append(wire.unbody(frame[4:]))


def settle(w: World, seconds: float = 1.0) -> None:
    until = w.timeline.now + seconds
    w.timeline.at(until, lambda: None)
    w._until(lambda: w.timeline.now >= until)


def call(number: int, keep: bool = True, key: str = "k", route: tuple[str, ...] = ()) -> list[Any]:
    return [wire.CALL, number, "a/f", "", "", keep, key, list(route), b"Pinput of %d" % number]


def test_who_shares_a_refused_call_is_refused_too() -> None:
    w = world(sync_s=0.0)
    w.plane.feed(e.Deployed("a", 2, (SPEC,)))
    settle(w)
    session = Told(w)
    Session._frame(session, call(1))
    session._kept(2, 1)
    assert session.said[-1] == [wire.ACCEPTED, 2, 1]
    session._not_kept(1, "The disk is full.")
    session._kept(3, 1)
    assert session.said[-1][:3] == [wire.RESULT, 3, "FAILED"]
    assert session.said[-1][3].startswith("unavailable: ")


class Silent:
    """Hands that do nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: ""


class Heard:
    def __init__(self) -> None:
        self.results: list[tuple[int, str, bytes]] = []
        self.items: list[bytes] = []

    def result(self, call: int, status: str, reason: str, output: bytes, released: bool = False) -> None:
        self.results.append((call, status, output))

    def item(self, call: int, output: bytes) -> None:
        self.items.append(output)

    def printed(self, call: int, function: str, stream: str, text: str) -> None: ...


def serving(*specs: FunctionSpec) -> tuple[World, Any]:
    """A control plane whose machines are played by the test."""
    w = world(sync_s=0.0)
    hands: Any = Silent()
    w.plane._do.update({kind: lambda _: None for kind in (e.StartInstance, e.StopInstance, e.GrowNode, e.PruneNode)})
    w.plane.hands = hands
    w.plane.feed(e.Deployed("a", 2, specs))
    return w, w.plane


def test_a_shared_answer_is_told_once_it_is_safe() -> None:
    w, plane = serving(SPEC)
    heard = Heard()
    plane.submit(e.Submitted(1, "a/f", True, key="k", input=b"x"), b"x", None)
    instance = max(plane.controller.instances)
    plane.feed(e.InstanceReady(instance))
    plane.instance_frame(instance, [wire.DONE, 1, True, 0.1, b"Pdone", "", False])
    plane.submit(e.Submitted(2, "a/f", False, key="k"), b"x", heard)
    assert heard.results == []
    settle(w)
    assert heard.results == [(2, "SUCCEEDED", b"Pdone")]
    assert plane._shared == set()


def test_plain_calls_of_one_key_all_get_the_answer() -> None:
    _w, plane = serving(SPEC)
    heard = Heard()
    for call in (1, 2, 3):
        plane.submit(e.Submitted(call, "a/f", False, key="k"), b"x", heard)
    instance = max(plane.controller.instances)
    plane.feed(e.InstanceReady(instance))
    plane.instance_frame(instance, [wire.DONE, 1, True, 0.1, b"Pdone", "", False])
    assert heard.results == [(call, "SUCCEEDED", b"Pdone") for call in (1, 2, 3)]
    assert plane.outputs == {}


def test_an_item_comes_once_from_whichever_execution_yields_it_first() -> None:
    _w, plane = serving(FunctionSpec(name="a/f", cpu=0.0, generator=True, retries=Retries(2)))
    heard = Heard()
    plane.submit(e.Submitted(1, "a/f"), b"x", heard)
    for items in (b"abc", b"a", b"abcde"):
        instance = max(plane.controller.instances)
        plane.feed(e.InstanceReady(instance))
        assert plane.controller.calls[1].instance == instance
        for item in items:
            plane.instance_frame(instance, [wire.YIELDED, 1, bytes([item])])
        if items != b"abcde":
            plane.feed(e.InstanceLost(instance))
    plane.instance_frame(instance - 1, [wire.YIELDED, 1, b"b"])  # late
    plane.instance_frame(instance, [wire.DONE, 1, True, 0.1, b"Pend", "", False])
    plane.instance_frame(instance, [wire.YIELDED, 1, b"f"])
    assert heard.items == [b"a", b"b", b"c", b"d", b"e"]
    assert plane.streams._streams == {}


def test_a_late_answer_of_an_instance_that_was_given_up_changes_nothing() -> None:
    _w, plane = serving(
        FunctionSpec(name="a/f", cpu=0.0, timeout_s=1.0, retries=Retries(1)),
        FunctionSpec(name="a/g", cpu=0.0),
    )
    plane.submit(e.Submitted(1, "a/f", False, route=("a/g",)), b"Pfirst", Heard())
    old = max(i.id for i in plane.controller.instances.values() if i.function.name == "a/f")
    plane.feed(e.InstanceReady(old))
    assert plane.controller.calls[1].instance == old
    plane.feed(e.TimerFired(("instance", old)), plane.now + 2.0)
    assert old not in plane.controller.instances
    plane.instance_frame(old, [wire.DONE, 1, True, 0.1, b"Plate", "", False])
    assert plane.inputs == {1: b"Pfirst"}
    assert plane.outputs == {}
