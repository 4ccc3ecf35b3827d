"""Classes with state, batching, concurrency, and how many instances there are."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import classes_app as app
import pytest
from real import status, until

import nubes

SLOW_STATES = ("ray",)


@pytest.fixture(scope="module", autouse=True)
def running(plane: Path) -> Iterator[None]:
    with app.app.run():
        yield


def instances(name: str) -> list[dict[str, Any]]:
    return [i for i in status()["instances"] if i["function"].partition("#")[0] == f"classes/{name}"]


def pids_of(name: str) -> set[int]:
    return {i["pid"] for i in instances(name)}


def test_an_object_keeps_its_state_in_its_instance() -> None:
    counter, other = app.Counter(start=10), app.Counter(start=100)
    assert [counter.up.remote(), counter.up.remote(by=5), other.up.remote(), counter.up.remote()] == [11, 16, 101, 17]
    assert app.Counter(start=10).up.remote() == 18  # equal parameters are the same object
    assert list(app.Counter(start=3).countdown.remote()) == [3, 2, 1]
    assert app.Counter(start=3).up_async.remote() == 4
    assert counter.up.local() == 11  # here it is another one
    assert list(other.up.map([1, 1])) == [102, 103]
    assert other.up.spawn(1).get() == 104


def test_a_method_is_found_by_name() -> None:
    assert nubes.Function.from_name("classes", "Speller.upper").remote("ab") == "AB"
    spell = nubes.Function.from_name("classes", "Speller.spell")
    assert list(spell.remote_gen("ab")) == list(app.Speller().spell.remote("ab")) == ["a", "b"]
    with pytest.raises(nubes.UsageError, match=r"yields items .* \.remote_gen\(\)"):
        spell.remote("ab")
    with pytest.raises(nubes.UsageError, match="yields items"):
        asyncio.run(spell.remote.aio("ab"))
    with pytest.raises(nubes.UsageError, match="yields items"):
        list(spell.map(["ab"]))
    with pytest.raises(nubes.NotFound, match=r"Did you mean .*classes/Speller\.spell"):
        nubes.Function.from_name("classes", "Speller.spel")


def test_parameters_are_checked_here() -> None:
    with pytest.raises(TypeError, match="takes no"):
        app.Counter(end=3).up.remote()
    assert app.Positional(1).show.remote() == (1, "b")
    assert app.Positional(1, b="c").show.remote() == (1, "c")
    with pytest.raises(TypeError):
        app.Positional()
    with pytest.raises(AttributeError, match="not a @method"):
        _ = app.Counter().not_a_method


def test_exit_hooks_run_when_an_instance_is_stopped(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    other = nubes.App("leaving")
    cls = nubes.App.cls(other, keep_alive="fixed-window(keep=0.2s)", name="Leaving")(app.Counter.__nubes_raw__)
    with other.run():
        assert cls(start=4, trace=str(trace)).up.remote() == 5
        assert until(lambda: trace.exists() and trace.read_text()) == "5"


def test_snap_hooks_run_once_in_the_parent_or_before_the_first_call() -> None:
    loaded, begun, own = app.Snapped().pids.remote()
    assert begun == own
    assert loaded > 0


def test_a_failing_enter_hook_is_the_callers_error() -> None:
    with pytest.raises(OSError, match="no disk here"):
        app.Broken().use.remote()
    with pytest.raises(OSError, match="no disk here"):
        app.Broken().use.spawn().get()


def test_batching() -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(app.squares.remote, range(8)))
    assert [square for square, _ in results] == [x * x for x in range(8)]
    assert max(size for _, size in results) > 1
    assert all(size <= 4 for _, size in results)
    begun = time.monotonic()
    assert app.squares.remote(3) == (9, 1)  # nobody came: it went alone, after its wait
    assert time.monotonic() - begun >= 0.29
    assert [square for square, _ in app.squares.map(range(20))] == [x * x for x in range(20)]
    assert list(app.batched_async.map([1, 2], [10, 20])) == [11, 22]
    with pytest.raises(TypeError, match="one result for each"):
        list(app.too_few.map(range(3)))
    assert [c.get()[0] for c in [app.squares.spawn(x) for x in range(4)]] == [0, 1, 4, 9]


def test_threads_side_by_side() -> None:
    begun = time.monotonic()
    results = list(app.together.map([0.4] * 4))
    assert time.monotonic() - begun < 1.4
    assert len({pid for pid, _ in results}) == 1
    assert len({thread for _, thread in results}) == 4


def test_tasks_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    begun = time.monotonic()
    assert len(set(app.together_async.map([0.4] * 20))) == 1
    assert time.monotonic() - begun < 2
    capsys.readouterr()
    app.together_async.remote(0.0, "only mine")
    assert capsys.readouterr().out.splitlines() == [
        "[together_async] only mine begins",
        "[together_async] only mine ends",
    ]


def test_cancelling_one_task_leaves_the_others() -> None:
    async def race() -> None:
        stays = asyncio.create_task(app.together_async.remote.aio(0.6))
        goes = asyncio.create_task(app.together_async.remote.aio(30.0))
        await asyncio.sleep(0.2)
        goes.cancel()
        assert await stays > 0

    asyncio.run(race())


def test_at_most_so_many_instances() -> None:
    assert len(set(app.two_at_most.map([0.1] * 10))) <= 2
    assert len(instances("two_at_most")) <= 2


def test_at_least_so_many_instances() -> None:
    until(lambda: [i["state"] for i in instances("always_two")] == ["idle", "idle"])
    pids = pids_of("always_two")
    assert len(pids) == 2
    assert app.always_two.remote() in pids


def test_one_instance_ahead_of_the_load() -> None:
    call = app.one_ahead.spawn(1.0)
    until(lambda: [i["state"] for i in instances("one_ahead")].count("busy") == 1 and len(instances("one_ahead")) == 2)
    call.get()


def test_an_idle_instance_ends_with_its_keep_alive() -> None:
    first = app.short_lived.remote()
    assert app.short_lived.remote() == first
    until(lambda: not instances("short_lived"))
    assert app.short_lived.remote() != first


def test_an_instance_for_each_call() -> None:
    assert len({app.once.remote() for _ in range(4)}) == 4


def test_a_full_queue_pushes_back() -> None:
    calls = [app.narrow.spawn(0.5)]
    until(lambda: [i for i in instances("narrow") if i["state"] == "busy"])
    with pytest.raises(nubes.Overloaded, match="queue of 'classes/narrow' is full"):
        calls.extend(app.narrow.spawn(0.0) for _ in range(4))
    assert len(calls) == 3
    nubes.FunctionCall.gather(*calls)


def test_declarations_that_cannot_be() -> None:
    other = nubes.App("wrong")
    with pytest.raises(nubes.UsageError, match="without parentheses"):
        other.function(lambda: 1)
    with pytest.raises(nubes.UsageError, match="The options are"):
        other.function(memmory="1GiB")(lambda: 1)
    with pytest.raises(nubes.UsageError, match="has no unit"):
        other.function(memory=512)(lambda: 1)
    with pytest.raises(nubes.NubesError, match="Did you mean hybrid-histogram"):
        other.function(keep_alive="hybrid-histogramm")(lambda: 1)
    with pytest.raises(nubes.UsageError, match="more than max_instances"):
        other.function(min_instances=3, max_instances=2)(lambda: 1)
    with pytest.raises(nubes.UsageError, match="no method that can be called"):
        other.cls()(type("Empty", (), {}))
    with pytest.raises(nubes.UsageError, match=r"Put @app\.function\(\) on top"):
        nubes.concurrent(max_inputs=2)(other.function(name="late")(len))
    with pytest.raises(nubes.UsageError, match="min_instances=-1 is negative"):
        other.function(min_containers=-1)(lambda: 1)
