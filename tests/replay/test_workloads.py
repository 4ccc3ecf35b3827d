"""Workloads: the readers against files written out by hand, the generators against the fits they promise."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from nubes.kernel.errors import NotFound, UsageError
from nubes.replay import Configuration, replay
from nubes.workloads import Workload, load
from nubes.workloads.draws import HUAWEI_GAP_S, HUAWEI_START_S, generator, lognormal, weibull, weibull_of
from nubes.workloads.synthetic import GENERATORS

traces = pytest.mark.skipif("NUBES_TRACES" not in os.environ, reason="NUBES_TRACES names no folder of public traces")


def _azure(folder: Path) -> Path:
    folder.mkdir()
    (folder / "invocations.csv").write_text(
        "HashOwner,HashApp,HashFunction,Trigger,1,2,3\no,aa,f1,http,2,0,3\no,bb,f2,timer,0,1,0\n"
    )
    head = "HashOwner,HashApp,HashFunction,Average,Count,Minimum,Maximum," + ",".join(
        f"percentile_Average_{q}" for q in (0, 1, 25, 50, 75, 99, 100)
    )
    rows = "o,aa,f1,5,5,1,9,100,100,100,100,100,100,100\no,bb,f2,5,5,1,9,0,0,10,20,30,40,50\n"
    (folder / "durations.csv").write_text(f"{head}\n{rows}")
    (folder / "memory.csv").write_text("HashFunction,HashOwner,HashApp,SampleCount,AverageAllocatedMb\nf1,o,aa,9,256\n")
    return folder


def test_azure_counts_become_calls_of_their_minute(tmp_path: Path) -> None:
    made = load(_azure(tmp_path / "mine"))
    assert isinstance(made, Workload)
    assert (made.calls, made.seconds, made.name.split("/")[-1]) == (6, 180.0, "mine")
    assert [spec.name for spec in made.specs] == ["aa/f1", "bb/f2"]
    assert [spec.trigger for spec in made.specs] == ["http", "timer"]
    assert made.specs[0].memory_bytes == 256 << 20
    minutes = (made.arrival_s // 60).astype(int)
    assert sorted(zip(minutes.tolist(), made.function.tolist(), strict=True)) == [(0, 0)] * 2 + [(1, 1)] + [(2, 0)] * 3
    assert made.exec_s[made.function == 0].tolist() == [0.1] * 5
    assert 1e-4 <= made.exec_s[made.function == 1][0] <= 0.05
    assert (np.diff(made.arrival_s) >= 0).all()


def test_azure_seeds_and_options(tmp_path: Path) -> None:
    folder = _azure(tmp_path / "mine")
    first, again, other = load(folder, 1), load(folder, 1), load(folder, 2)
    even = load(folder, arrivals="equidistant", start_s=2.5)
    assert isinstance(first, Workload)
    assert isinstance(again, Workload)
    assert isinstance(other, Workload)
    assert isinstance(even, Workload)
    assert first.arrival_s.tolist() == again.arrival_s.tolist() != other.arrival_s.tolist()
    assert even.start_s[0].tolist() == [2.5]
    gaps = np.diff(even.arrival_s[(even.function == 0) & (even.arrival_s >= 120)])
    assert gaps == pytest.approx([20.0, 20.0])
    with pytest.raises(UsageError, match="no way to place"):
        load(folder, arrivals="never")


def test_iluvatar_starts_take_the_cold_time_less_the_warm_time(tmp_path: Path) -> None:
    (tmp_path / "functions.csv").write_text(
        "func_name,cold_dur_ms,warm_dur_ms,mem_mb,mean_iat\na,1500,500,64,1\nb,100,40,8,\n"
    )
    (tmp_path / "invocations.csv").write_text("func_name,invoke_time_ms\nb,5\na,1000\nb,2500\n")
    made = load(tmp_path)
    assert isinstance(made, Workload)
    assert made.arrival_s.tolist() == [0.005, 1.0, 2.5]
    assert made.exec_s.tolist() == [0.04, 0.5, 0.04]
    assert [s.tolist() for s in made.start_s] == [[1.0], pytest.approx([0.06])]
    (tmp_path / "invocations.csv").write_text("func_name,invoke_time_ms\nc,5\n")
    with pytest.raises(UsageError, match="does not describe c"):
        load(tmp_path)


def test_huawei_fits_have_the_published_mean_and_spread() -> None:
    starts = lognormal(generator(1, "t"), *HUAWEI_START_S, 1_000_000)
    gaps = weibull(generator(2, "t"), *HUAWEI_GAP_S, 1_000_000)
    assert weibull_of(*HUAWEI_GAP_S) == pytest.approx((0.418, 0.422), abs=5e-4)
    assert (starts.mean(), starts.std()) == pytest.approx(HUAWEI_START_S, rel=0.05)
    assert (gaps.mean(), gaps.std()) == pytest.approx(HUAWEI_GAP_S, rel=0.05)


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_are_seeded_sorted_and_within_their_length(name: str) -> None:
    text = f"{name}(functions=8,length=20m)"
    first, again, other = load(text, 4), load(text, 4), load(text, 5)
    assert isinstance(first, Workload)
    assert isinstance(again, Workload)
    assert isinstance(other, Workload)
    assert first.calls
    assert first.arrival_s.tobytes() == again.arrival_s.tobytes()
    assert first.exec_s.tobytes() == again.exec_s.tobytes()
    assert first.arrival_s.tobytes() != other.arrival_s.tobytes()
    assert (np.diff(first.arrival_s) >= 0).all()
    assert first.arrival_s.min() >= 0.0
    assert first.arrival_s.max() < first.seconds == 1200.0
    assert (first.exec_s > 0).all()


def test_azure_like_is_as_skewed_as_azure() -> None:
    made = load("azure-like(functions=600,length=8h)", 1)
    assert isinstance(made, Workload)
    calls = np.sort(np.bincount(made.function, minlength=600))[::-1]
    assert calls[: round(600 * 0.186)].sum() / calls.sum() > 0.95  # published: 18.6 % make 99.6 %
    hourly = (calls <= 8).mean()
    assert 0.35 < hourly < 0.60  # published: 45 % at most hourly


def test_cutting_a_workload_keeps_its_first_calls() -> None:
    made = load("poisson(functions=2,length=10m)")
    assert isinstance(made, Workload)
    cut = made.until(60.0)
    assert cut.seconds == 60.0
    assert cut.calls == (made.arrival_s < 60.0).sum()
    assert cut.exec_s.tolist() == made.exec_s[: cut.calls].tolist()


def test_what_is_no_workload_is_said_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUBES_TRACES", raising=False)
    with pytest.raises(NotFound, match="NUBES_TRACES names no folder"):
        load("azure-functions-2019/500")
    with pytest.raises(UsageError, match="no workload that nubes can read"):
        load(tmp_path)
    with pytest.raises(UsageError, match="It takes: functions"):
        load("poisson(speed=3)")
    with pytest.raises(UsageError, match="out of order"):
        Workload("x", "", (), np.array([2.0, 1.0]), np.zeros(2, np.int32), np.ones(2), (), 3.0)


@traces
def test_the_azure_samples_have_all_their_calls() -> None:
    for name, functions, calls in (("100", 100, 339_657), ("500", 500, 3_037_902)):
        made = load(f"azure-functions-2019/{name}")
        assert isinstance(made, Workload)
        assert (len(made.specs), made.calls, made.seconds) == (functions, calls, 28_800.0)


@traces
def test_replaying_real_traces_answers_every_call() -> None:
    for name in ("azure-functions-2019/100", "iluvatar-functions"):
        made = load(name)
        assert isinstance(made, Workload)
        report = replay(made.until(1800.0), [Configuration("fixed-window"), Configuration("no-unload")], jobs=1)
        fixed, forever = (row.measures for row in report.rows)
        assert fixed.unanswered == forever.unanswered == fixed.failed == 0
        assert forever.cold_share <= fixed.cold_share
        assert forever.wasted_gib_s >= fixed.wasted_gib_s
