"""Functions that were never declared, run in the cloud."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED
from pathlib import Path

import pytest

from nubes.executor import Executor
from nubes.executor import map as cloud_map
from nubes.jobs import Job
from nubes.kernel.errors import CallFailed, UsageError
from nubes.papers.live import cloud, module


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("executor")
    with cloud(folder / "data"):
        yield folder


def test_lambdas_closures_and_local_modules(data: Path) -> None:
    local = module(data / "code", "nubes_test_local", "FACTOR = 3\ndef scaled(x):\n    return FACTOR * x\n")
    offset = 10
    assert list(cloud_map(lambda x: local.scaled(x) + offset, range(4))) == [10, 13, 16, 19]
    assert list(cloud_map(pow, [2, 3], [3, 2])) == [8, 9]


def test_the_map_at_the_top(data: Path) -> None:
    import nubes

    assert list(nubes.map(lambda x: x * x, range(300))) == [x * x for x in range(300)]
    assert sorted(nubes.map(abs, [-2, 1], order_outputs=False)) == [1, 2]
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            yield taken
            taken += 1

    results = nubes.map(lambda x: 10 // x if x else "none", endless())
    assert [next(results), next(results)] == ["none", 10]
    results.close()
    assert taken < 50_000
    bad, good = nubes.map(lambda x: 10 // x, [0, 5], return_exceptions=True)
    assert isinstance(bad, ZeroDivisionError)
    assert good == 2
    with pytest.raises(ZeroDivisionError):
        list(nubes.map(lambda x: 10 // x, [0, 5]))
    app = nubes.App("declared")
    assert list(nubes.map(app.function(serialized=True)(lambda x: x + 1), [1, 2])) == [2, 3]


@pytest.mark.parametrize("submit", ["direct", "storage"])
def test_what_is_raised_is_raised_here(data: Path, submit: str) -> None:
    def bad(x: int) -> int:
        if x == 1:
            raise KeyError("one")
        return x

    with Executor(submit=submit) as executor:
        first, second = executor.map(bad, [0, 1])
        assert first.result(60) == 0
        error = second.exception(60)
    assert isinstance(error, KeyError)
    assert "bad" in error.__notes__[0]


def test_wait_and_call_async(data: Path) -> None:
    with Executor() as executor:
        done, pending = executor.wait([executor.call_async(abs, -2)], 60, FIRST_COMPLETED)
        assert [future.result() for future in done] == [2]
        assert not pending
        assert executor.call_async(lambda: 5).result(60) == 5


def test_a_stored_job_is_continued_and_nothing_runs_twice(data: Path) -> None:
    ran = data / "ran"

    def task(x: int) -> int:
        with open(ran, "a") as file:
            file.write(f"{x}\n")
        return x * x

    for _ in range(2):
        with Executor(submit="storage", instances=2) as executor:
            assert [future.result(60) for future in executor.map(task, range(10), job="squares")] == [
                x * x for x in range(10)
            ]
    assert sorted(map(int, ran.read_text().split())) == list(range(10))
    with Executor(submit="storage", instances=2) as executor, pytest.raises(UsageError, match="10 items, not 3"):
        executor.map(task, range(3), job="squares")


def test_a_killed_worker_costs_an_attempt_and_no_result(data: Path) -> None:
    marks = data / "marks"
    marks.mkdir()

    def task(x: int) -> int:
        if x % 3 == 0 and not (marks / str(x)).exists():
            (marks / str(x)).touch()
            os._exit(1)
        return -x

    with Executor(submit="storage", instances=2) as executor:
        assert [future.result(60) for future in executor.map(task, range(7))] == [-x for x in range(7)]


def test_an_item_that_always_kills_its_worker_fails_in_the_end(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nubes.executor.ATTEMPTS", 1)
    monkeypatch.setattr("nubes.executor.PATIENCE_S", 0.1)
    with Executor(submit="storage", instances=1) as executor:
        (future,) = executor.map(lambda x: os._exit(1), [1])
        assert isinstance(future.exception(60), CallFailed)


def test_the_first_result_of_an_item_stays(tmp_path: Path) -> None:
    job = Job(tmp_path / "job")
    job.create("digest", [(1,), (2, 3)])
    assert job.arguments(1) == ("digest", (2, 3))
    assert job.finished() == set()
    from nubes.jobs import dumps

    job.answer(1, dumps((True, "first")))
    job.answer(1, dumps((True, "second")))
    assert job.finished() == {1}
    assert job.result(1) == (True, "first")


def test_a_job_needs_storage(data: Path) -> None:
    with Executor() as executor, pytest.raises(UsageError, match="storage"):
        executor.map(abs, [1], job="x")
    with pytest.raises(UsageError, match="direct"):
        Executor(submit="post")
