"""The parts that reproductions measure with, on cases worked out by hand."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from nubes.functions.spec import FunctionSpec
from nubes.papers import cidre, huawei_cold_starts, hybrid_histogram, images, probe, pywren, seuss, sock, xfaas
from nubes.papers.context import Context
from nubes.papers.platforms import PROFILES, Platform, Profile
from nubes.workloads import Workload


@pytest.fixture
def ctx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.delenv("NUBES_TRACES", raising=False)
    return Context(xfaas.PAPER, (), "both", 1, None, False, tmp_path, None)


def test_dominates() -> None:
    assert hybrid_histogram.dominates((1.0, 1.0), (1.0, 2.0))
    assert not hybrid_histogram.dominates((1.0, 1.0), (1.0, 1.0))
    assert not hybrid_histogram.dominates((0.5, 3.0), (1.0, 2.0))


def test_a_day_of_calls_swings_as_said(ctx: Context) -> None:
    workload = xfaas.diurnal(ctx, 0)
    hours = np.bincount((workload.arrival_s // 3600).astype(int) % 24, minlength=24)
    assert 3.6 < hours.max() / hours.min() < 5.0
    assert workload.exec_s.sum() / workload.seconds == pytest.approx(40.0)
    quotas = [spec.quota for spec in workload.specs]
    share = workload.exec_s[np.array(quotas)[workload.function] == "opportunistic"].sum() / workload.exec_s.sum()
    assert share == pytest.approx(0.5, abs=0.05)


def test_swing_counts_the_second_day_only() -> None:
    hours = np.arange(48) * 3600.0
    took = np.where(np.arange(48) < 24, 60.0, np.where(np.arange(48) == 30, 3600.0, 900.0))
    assert xfaas.swing_of(hours, hours + took) == pytest.approx(4.0)


def workload_of(calls: list[tuple[float, int, float]], functions: int) -> Workload:
    specs = tuple(FunctionSpec(name=f"a/f{i}", memory_bytes=100) for i in range(functions))
    at, which, took = (np.array(column) for column in zip(*calls, strict=True))
    starts = (np.array([1.0]),) * functions
    return Workload("w", "by hand", specs, at.astype(float), which.astype(np.int32), took.astype(float), starts, 180.0)


def test_routed_calls_queue_and_stay_resident() -> None:
    # from 60 s on: three calls of 10 s at once on one worker of two slots: the third waits for 10 s
    workload = workload_of([(60.0, 0, 10.0), (60.0, 0, 10.0), (60.0, 1, 10.0), (179.0, 1, 1.0)], 2)
    median, fullest, latency = xfaas.routed(workload, 1, lambda f, left: 0)
    assert latency == pytest.approx((10.0 + 10.0 + 20.0 + 1.0) / 4)
    assert (median, fullest) == (100.0, pytest.approx(190.0))  # nothing at minute 1 ... both functions at minute 2


def test_a_fleet_reaches_its_rate() -> None:
    rate, ramp = pywren.fleet(0)
    assert rate == pytest.approx(84.0, rel=0.02)
    assert 0.3 < ramp < 1.1


def test_generators_follow_the_fits() -> None:
    assert huawei_cold_starts.fit_error(0) < 0.1


def test_waits_are_what_latency_is_beyond_execution() -> None:
    class Measured:
        mean_latency_s = 1.5

    assert cidre.wait(Measured(), 1.0) == 0.5  # type: ignore[arg-type]


def test_package_sets_are_of_one_to_three() -> None:
    sets = sock.package_sets(0, 50, sock.PACKAGES)
    assert sets == sock.package_sets(0, 50, sock.PACKAGES)
    assert {len(one) for one in sets} == {1, 2, 3}
    assert all(len(set(one)) == len(one) and set(one) <= set(sock.PACKAGES) for one in sets)


def test_functions_under_seuss_have_code_of_their_own(ctx: Context) -> None:
    made = seuss.functions(ctx, "test_seuss", 3)
    codes = [f.declared.complete().code for f in made.app.functions.values()]
    assert len({code.digest for code in codes}) == 3
    assert all(code.imports == ("numpy",) for code in codes)
    assert [made.app.functions[f"f{i}"].local(1) for i in range(3)] == [8.0, 16.0, 24.0]


class TestPlatforms:
    def test_packing_fills_a_host_first(self) -> None:
        platform = Platform(Profile("pack", memory_mb=100, host_mb=300))
        assert [reply.host for reply in platform.burst(7, 1.0)] == ["h0"] * 3 + ["h1"] * 3 + ["h2"]

    def test_spreading_takes_the_emptiest(self) -> None:
        platform = Platform(Profile("spread", memory_mb=100, host_mb=300, hosts=3))
        assert [reply.host for reply in platform.burst(4, 1.0)] == ["h0", "h1", "h2", "h0"]

    def test_instances_are_used_again_until_they_go(self) -> None:
        platform = Platform(Profile("pack", keep_s=10.0))
        (first,) = platform.burst(1, 0.0)
        platform.wait(10.0)
        assert platform.burst(1, 0.0) == [first]
        platform.wait(10.1)
        assert platform.burst(1, 0.0) != [first]

    def test_aws_halves_idle_instances(self) -> None:
        for idle_s, left in ((299.0, 8), (300.0, 4), (650.0, 2), (900.0, 1), (1619.0, 0)):
            platform = Platform(PROFILES["aws-2018"])
            platform.burst(8, 0.0)
            platform.wait(idle_s)
            assert len(platform.idle) == left
        platform = Platform(PROFILES["aws-2018"])
        platform.burst(64, 0.0)
        for _ in range(9):
            platform.wait(100.0)
        assert len(platform.idle) == 8

    @pytest.mark.parametrize("keep_s", [7.0, 90.0, 600.0])
    def test_the_idle_lifetime_is_found(self, keep_s: float) -> None:
        found = probe.idle_lifetime(Platform(Profile("pack", keep_s=keep_s)), 1.0, 10_000.0)
        assert found == pytest.approx(keep_s, rel=0.03)

    @pytest.mark.parametrize("placement", ["pack", "spread", "random"])
    @pytest.mark.parametrize("seed", range(5))
    def test_the_placement_is_named(self, placement: str, seed: int) -> None:
        platform = Platform(Profile(placement, hosts=16, keep_s=60.0), seed)
        assert probe.placement(platform, recycle_s=120.0) == placement


def test_a_probe_says_who_and_where_it_is() -> None:
    first, second = probe.observe(0.05, "v1"), probe.observe()
    assert first["instance"] == second["instance"]
    assert first["version"] == "v1"
    assert 0.2 < first["cpu_share"] <= 1.02
    assert second["cpu_share"] == 0.0


def test_lean_containers_come_and_go(tmp_path: Path) -> None:
    from nubes.drivers.local import containers
    from nubes.drivers.local.limits import Limits

    why = containers.available()
    if why:
        pytest.skip(why)
    base = tmp_path / "base"
    (base / "scratch").mkdir(parents=True)
    (base / "hello").write_text("from the base")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            containers.own_mounts()
            limits = Limits(f"nubes-test-{os.getpid()}")
            lean = containers.Lean(base, tmp_path, limits, 1.0, 64 << 20)
            root, group = lean.create("one")
            inside = os.fork()
            if inside == 0:
                lean.enter(root, group)
                fine = Path("/hello").read_text() == "from the base" and not Path("/usr").exists()
                Path("mine").write_text("written")
                try:
                    Path("/hello").write_text("changed")
                    fine = False
                except OSError:
                    pass
                os._exit(0 if fine else 1)
            fine = os.waitpid(inside, 0)[1] == 0 and (tmp_path / "one.scratch" / "mine").read_text() == "written"
            (tmp_path / "one.scratch" / "mine").unlink()
            lean.destroy(root, group)
            limits.close()
            status = 0 if fine and not root.exists() else 1
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert (base / "hello").read_text() == "from the base"


def test_calls_held_back_do_not_multiply_timers() -> None:
    from nubes.drivers.sim import simulate
    from nubes.functions.controller import Functions
    from nubes.functions.events import TimerFired

    calls = [(0.1 * n, 0, 5.0) for n in range(300)]
    workload = workload_of(calls, 1)
    held = FunctionSpec(name="a/f0", cpu=1.0, quota="opportunistic", quota_cpu=1.0)
    workload = Workload(
        "held", "by hand", (held,), workload.arrival_s, workload.function, workload.exec_s, workload.start_s, 2000.0
    )
    outcome = simulate(workload, Functions("no-unload", "xfaas", "fresh", cpu=2.0), record=True)
    serve = [event for _, event in outcome.log if isinstance(event, TimerFired) and event.key[0] == "serve"]
    assert (outcome.end == 0).all()
    assert len(serve) < 2 * len(calls)


def readlink(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:  # it has ended since, or is another user's
        return ""


ANSWERS = "class First:\n    @staticmethod\n    def local():\n        return 1\n\nfirst = First()\n"


def test_without_criu_there_are_no_process_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(images.NoImages, match="not installed"):
        images.restored(tmp_path / "image", tmp_path, "answers", 1)


def test_a_process_that_cannot_be_written_down_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "criu").write_text("#!/bin/sh\necho Error: this kernel does not let me\nexit 1\n")
    (tmp_path / "criu").chmod(0o755)
    (tmp_path / "answers.py").write_text(ANSWERS)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(images.NoImages, match="criu dump failed: Error: this kernel does not let me"):
        images.restored(tmp_path / "image", tmp_path, "answers", 1)
    assert not [path for path in Path("/proc").glob("[0-9]*/cwd") if readlink(path).startswith(str(tmp_path))]


@pytest.mark.skipif(shutil.which("criu") is None, reason="criu is not installed")
def test_a_process_comes_back_from_its_image_as_often_as_wanted(tmp_path: Path) -> None:
    (tmp_path / "answers.py").write_text(ANSWERS)
    try:
        took = images.restored(tmp_path / "image", tmp_path, "answers", 3)
    except images.NoImages as reason:
        pytest.skip(str(reason))
    assert len(took) == 3
    assert not (tmp_path / "image" / "answer").exists()
