"""Calls: the ways to make one, and what comes back."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import calls_app as app
import pytest
from real import script, status, until

import nubes
from nubes import client
from nubes.drivers.local.state import read
from nubes.functions import events as e
from nubes.kernel.message import Codec

STATES = ("folder", "servers", "ray")


@pytest.fixture(scope="module", autouse=True)
def running(plane: Path) -> Iterator[None]:
    with app.app.run():
        yield


def test_the_ways_to_call() -> None:
    assert app.add(1, 2) == app.add.local(1, 2) == app.add.remote(1, 2) == 3
    assert app.add.remote(1, b=5) == 6
    assert app.add.spawn(4, b=4).get() == 8
    assert list(app.add.map(range(4))) == [1, 2, 3, 4]
    assert list(app.add.map([1, 2], [10, 20])) == [11, 22]
    assert list(app.add.map(range(3), kwargs={"b": 10})) == [10, 11, 12]
    assert list(app.add.starmap([(1, 2), (3, 4)])) == [3, 7]
    assert app.add.for_each(range(3)) is None
    local, pid, name = app.where.remote()
    assert (local, name) == (False, "calls/where")
    assert pid != os.getpid()
    assert nubes.is_local()


def test_the_async_ways_to_call() -> None:
    async def calls() -> None:
        assert await app.add.remote.aio(1, 2) == 3
        call = await app.add.spawn.aio(4, b=4)
        assert await call.get.aio() == 8
        assert [x async for x in app.add.map.aio(range(50))] == list(range(1, 51))
        assert [x async for x in app.add.starmap.aio([(1, 2), (3, 4)])] == [3, 7]
        assert sorted([x async for x in app.add.map.aio(range(9), order_outputs=False)]) == list(range(1, 10))
        await app.add.for_each.aio(range(3))
        assert [x async for x in app.count_to.remote_gen.aio(4)] == [0, 1, 2, 3]
        begun = time.monotonic()
        assert await asyncio.gather(*(app.after_async.remote.aio(1.0, n) for n in range(8))) == list(range(8))
        assert time.monotonic() - begun < 7.0  # they ran side by side
        with pytest.raises(ValueError, match="not 3"):
            [x async for x in app.double_unless_three.map.aio(range(5))]
        with pytest.raises(nubes.CallTimeout):
            await (await app.after.spawn.aio(0.6)).get.aio(timeout=0.05)

    asyncio.run(calls())


def test_results_in_order_or_as_they_come() -> None:
    waits = [0.8, 0.0, 0.3]
    assert list(app.after.starmap([(s, s) for s in waits])) == waits
    assert list(app.after.starmap([(s, s) for s in waits], order_outputs=False)) == sorted(waits)


def test_a_map_of_many_calls_loses_none() -> None:
    assert list(app.add.map(range(5000))) == list(range(1, 5001))
    assert sorted(app.add.map(iter(range(3000)), order_outputs=False)) == list(range(1, 3001))


def test_a_map_takes_its_inputs_as_it_goes() -> None:
    taken = []

    def inputs() -> Iterator[int]:
        for number in range(20_000):
            taken.append(number)
            yield number

    results = app.add.map(inputs())
    assert next(results) == 1
    assert len(taken) < 20_000
    results.close()


def test_partial_failures() -> None:
    results = list(app.double_unless_three.map(range(6), return_exceptions=True))
    assert results[:3] + results[4:] == [0, 2, 4, 8, 10]
    assert isinstance(results[3], ValueError)
    got = []
    with pytest.raises(ValueError, match="not 3"):
        got.extend(app.double_unless_three.map(range(6)))
    assert got == [0, 2, 4]
    with pytest.raises(ValueError, match="not 3"):
        app.double_unless_three.for_each(range(6))
    app.double_unless_three.for_each(range(6), ignore_exceptions=True)


def outcomes(work: Any) -> list[Any]:
    """What iterating gives, with the exception that ended it, if one did."""
    seen: list[Any] = []
    try:
        for item in work():
            seen.append(item)
    except Exception as error:
        seen.append((type(error), error.args))
    return seen


@pytest.mark.parametrize("inputs", [[], [1], [0, 1, 2, 4, 5], [1, 3, 2], [3], ["a", 2], [None]])
def test_map_has_the_manners_of_concurrent_futures(inputs: list[Any]) -> None:
    raw = app.double_unless_three.local
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        expected = outcomes(lambda: pool.map(raw, inputs))
    assert outcomes(lambda: app.double_unless_three.map(inputs)) == expected


@pytest.mark.parametrize("value", [2, 3, None])
def test_spawn_and_get_have_the_manners_of_submit_and_result(value: Any) -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        future = pool.submit(app.double_unless_three.local, value)
        expected = outcomes(lambda: [future.result()])
        late = pool.submit(app.after.local, 0.5, 1)
        with pytest.raises(TimeoutError):
            late.result(timeout=0.01)
        assert late.result() == 1
    call = app.double_unless_three.spawn(value)
    assert outcomes(lambda: [call.get()]) == expected
    assert outcomes(lambda: [call.get()]) == expected  # and again, as a future would
    late_call = app.after.spawn(0.5, 1)
    with pytest.raises(TimeoutError):
        late_call.get(timeout=0.01)
    assert late_call.get() == 1


def test_another_process_fetches_a_call_by_its_id() -> None:
    call = app.after.spawn(0.5, {"kept": [1, 2]})
    text = "import nubes; print(nubes.FunctionCall.from_id(sys.argv[1]).get())"
    out, err = script(text, call.object_id).communicate(timeout=30)
    assert out.strip() == "{'kept': [1, 2]}", err
    assert call.get() == {"kept": [1, 2]}
    assert nubes.FunctionCall.gather(call, app.add.spawn(1)) == [{"kept": [1, 2]}, 2]
    with pytest.raises(nubes.CallFailed, match="No call of this id"):
        nubes.FunctionCall.from_id("fc-123").get()
    with pytest.raises(nubes.UsageError, match="not a call id"):
        nubes.FunctionCall.from_id("fc-Ü")


def test_polling() -> None:
    call = app.after.spawn(0.4, 1)
    with pytest.raises(nubes.CallTimeout):
        call.get(timeout=0)
    assert until(lambda: _there(call)) == 1


def _there(call: nubes.FunctionCall) -> Any:
    try:
        return call.get(timeout=0)
    except nubes.CallTimeout:
        return None


def test_remote_exceptions_come_as_themselves() -> None:
    with pytest.raises(app.Refused) as caught:
        app.fail.remote("own")
    assert (caught.value.what, caught.value.code) == ("no", 7)
    with pytest.raises(KeyError, match="deep down") as caught_deep:
        app.fail.remote("deep")
    shown = "".join(traceback.format_exception(caught_deep.value))
    assert "in deeper" in shown
    assert "calls_app.py" in shown
    with pytest.raises(nubes.RemoteError, match="it holds a lock"):
        app.fail.remote("unpicklable")
    with pytest.raises(TypeError, match="pickle"):
        app.fail.remote("unpicklable result")
    with pytest.raises(app.Refused):
        app.fail.spawn("own").get()
    assert app.add.remote(1) == 2


@pytest.mark.parametrize(("code", "exit_code"), [(3, 3), (0, 0), (None, 0), ("no more", 1)])
def test_sys_exit_there_is_an_error_here_with_its_code(code: Any, exit_code: int) -> None:
    for function in (app.leave, app.leave_async):
        with pytest.raises(nubes.FunctionExited, match=r"The function called sys\.exit\(") as caught:
            function.remote(code)
        assert caught.value.exit_code == exit_code
        assert pickle.loads(pickle.dumps(caught.value)).exit_code == exit_code
    (error,) = app.leave.map([code], return_exceptions=True)
    assert isinstance(error, nubes.FunctionExited)


def test_nothing_that_a_function_raises_ends_its_caller() -> None:
    with pytest.raises(nubes.RemoteError, match="CancelledError"):
        app.cancel_itself.remote()
    with pytest.raises(ConnectionResetError, match="of the function's"):
        list(app.fail.map(["connection"]))
    assert app.add.remote(1) == 2


def test_what_cannot_be_sent_is_said_at_once() -> None:
    with pytest.raises(nubes.UsageError, match="cannot be sent"):
        app.after.remote(0, threading.Lock())
    assert app.add.remote(1) == 2
    with pytest.raises(TypeError, match="unexpected keyword"):
        app.add.remote(1, c=2)


def test_logs_come_back_labelled(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    app.say.remote("hello")
    shown = capsys.readouterr()
    assert shown.out.splitlines() == ["[say] hello", "[say] no newline"]
    assert shown.err.splitlines() == ["[say] hello twice", "[say] hello thrice"]


def test_generators_stream() -> None:
    assert list(app.count_to.remote(5)) == list(app.count_to.remote_gen(5)) == list(app.count_to.local(5))
    assert list(app.count_async.remote(5)) == [0, 1, 2, 3, 4]
    got = []
    with pytest.raises(RuntimeError, match="lost count"):
        got.extend(app.count_to.remote(5, fail_at=2))
    assert got == [0, 1]
    for call in (app.count_to.spawn, app.count_to.map):
        with pytest.raises(nubes.UsageError, match=r"cannot be called with .* Use \.remote_gen\(\)"):
            call([3])
    with pytest.raises(nubes.UsageError, match="what it yields is not kept"):
        app.count_to.with_key("k")
    for wrong in (app.count_to.remote.aio(3), app.count_to.spawn.aio(3)):
        with pytest.raises(nubes.UsageError, match="cannot be called with"):
            asyncio.run(wrong)


@pytest.mark.parametrize("ends", ["killed", "raises"])
@pytest.mark.parametrize("size", [1, 1 << 17])
def test_no_item_is_given_twice(tmp_path: Path, size: int, ends: str) -> None:
    path = tmp_path / "tries"
    items = list(app.count_in_tries.remote_gen(str(path), size, ends))
    assert items == [bytes([number]) * size for number in range(6)]
    assert path.read_text() == "xxx"
    shared = Path(client.connect().shared)
    until(lambda: not [path for path in shared.glob("seg-*") if int(path.name.split("-")[1]) != os.getpid()])


def test_leaving_a_generator_ends_it(tmp_path: Path) -> None:
    numbers = app.endless.remote(str(tmp_path / "n"))
    assert [next(numbers), next(numbers), next(numbers)] == [0, 1, 2]
    numbers.close()
    until(lambda: _still(tmp_path / "n"))


def _still(path: Path) -> bool:
    before = path.read_text()
    time.sleep(0.2)
    return path.read_text() == before


def test_cancelling_a_running_and_a_waiting_call(tmp_path: Path) -> None:
    call = app.mark.spawn(str(tmp_path / "a"), 1.0)
    until((tmp_path / "a.begun").exists)
    call.cancel()
    with pytest.raises(nubes.CallCancelled):
        call.get()
    many = [app.mark.spawn(str(tmp_path / str(n)), 0.4) for n in range(40)]
    many[-1].cancel()
    with pytest.raises(nubes.CallCancelled):
        many[-1].get()
    nubes.FunctionCall.gather(*many[:-1])
    time.sleep(0.8)
    assert not (tmp_path / "a.done").exists()
    assert not (tmp_path / "39.begun").exists()


def test_cancelling_an_async_call(tmp_path: Path) -> None:
    async def cancel() -> None:
        task = asyncio.create_task(app.mark.remote.aio(str(tmp_path / "a"), 1.0))
        while not (tmp_path / "a.begun").exists():
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await app.add.remote.aio(1) == 2

    asyncio.run(cancel())
    time.sleep(1.2)
    assert not (tmp_path / "a.done").exists()


def test_leaving_a_map_cancels_the_rest(tmp_path: Path) -> None:
    paths = [(str(tmp_path / str(n)), 0.1) for n in range(200)]
    for _ in app.mark.starmap(paths):
        break
    until(lambda: not [c for c in status()["calls"] if c["function"] == "calls/mark"])
    done = len(list(tmp_path.glob("*.done")))
    time.sleep(0.3)
    assert len(list(tmp_path.glob("*.done"))) <= done + 16 < 200


def test_a_failure_in_a_map_cancels_the_rest(tmp_path: Path) -> None:
    inputs = [("leave", str(tmp_path / "0"))] + [("mark", str(tmp_path / str(n))) for n in range(1, 200)]
    with pytest.raises(nubes.FunctionExited):
        list(app.leave_or_mark.starmap(inputs))
    until(lambda: not [c for c in status()["calls"] if c["function"] == "calls/leave_or_mark"])
    assert len(list(tmp_path.glob("*.done"))) < 200


def test_leaving_an_async_map_cancels_the_rest(tmp_path: Path) -> None:
    paths = [(str(tmp_path / str(n)), 0.1) for n in range(200)]

    async def leave() -> None:
        results = app.mark.starmap.aio(paths)
        async for _ in results:
            break
        await results.aclose()
        assert await app.add.remote.aio(1) == 2  # on the same connection

    asyncio.run(leave())
    until(lambda: not [c for c in status()["calls"] if c["function"] == "calls/mark"])
    assert len(list(tmp_path.glob("*.done"))) < 200


def test_many_wait_for_the_same_call() -> None:
    async def wait() -> None:
        call = await app.after.spawn.aio(0.8, "late")
        long = [asyncio.create_task(call.get.aio()) for _ in range(2)]
        await asyncio.sleep(0.05)
        with pytest.raises(nubes.CallTimeout):
            await call.get.aio(timeout=0)
        with pytest.raises(nubes.CallTimeout):
            await call.get.aio(timeout=0.1)
        assert await asyncio.wait_for(asyncio.gather(*long), 20) == ["late", "late"]

    asyncio.run(wait())


def test_timeouts() -> None:
    begun = time.monotonic()
    with pytest.raises(nubes.CallTimeout, match=r"longer than its timeout of 0\.3 s"):
        app.too_slow.remote()
    with pytest.raises(TimeoutError):
        app.too_slow.spawn().get()
    assert time.monotonic() - begun < 10


def test_retries_with_backoff(tmp_path: Path) -> None:
    assert app.third_time.remote(str(tmp_path / "log")) == 3
    times = [float(line) for line in (tmp_path / "log").read_text().splitlines()]
    first, second = (b - a for a, b in itertools.pairwise(times))
    assert first >= 0.1
    assert second >= 0.2


def test_a_crash_is_retried_if_the_function_says_so(tmp_path: Path) -> None:
    assert app.crash_once.remote(str(tmp_path / "crashed")) == "survived"


def test_a_key_makes_calls_one(tmp_path: Path) -> None:
    keyed = app.increment.with_key("only once")
    calls = [keyed.spawn(str(tmp_path / "n")) for _ in range(5)]
    assert [call.get() for call in calls] == [1] * 5
    assert (tmp_path / "n").read_text() == "x"
    with pytest.raises(nubes.UsageError, match="every call of a map would be the same one"):
        keyed.map([str(tmp_path / "n")])


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_calls_of_one_key_at_the_same_time_all_get_the_answer(tmp_path: Path, size: int) -> None:
    runs, end = str(tmp_path / "runs"), str(tmp_path / "end")
    keyed = app.increment_slowly.with_key(f"together {size}")
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(keyed.remote, runs, end, size) for _ in range(3)]
        until(lambda: len([c for c in status()["calls"] if c["function"] == "calls/increment_slowly"]))
        time.sleep(0.3)
        Path(end).touch()
        assert [len(call.result()) for call in calls] == [size] * 3
    assert Path(runs).read_text() == "x"


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_a_spawned_call_shares_the_work_of_one_that_was_not(tmp_path: Path, size: int) -> None:
    runs, end = str(tmp_path / "runs"), str(tmp_path / "end")
    keyed = app.increment_slowly.with_key(f"shared {size}")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(keyed.remote, runs, end, size)
        until(Path(runs).exists)
        call = keyed.spawn(runs, end, size)
        after = pool.submit(keyed.remote, runs, end, size)
        Path(end).touch()
        assert len(first.result()) == len(call.get()) == len(after.result()) == size
    assert len(keyed.remote(runs, end, size)) == len(call.get()) == size
    far = client.connect().arguments.objects.far  # where it would take long to put a large answer
    assert Path(runs).read_text() == ("xx" if far and size > 1 else "x")


def test_a_spawned_call_begins_anew_if_the_client_whose_work_it_shares_dies(tmp_path: Path) -> None:
    runs, end = str(tmp_path / "runs"), str(tmp_path / "end")
    keyed = app.increment_slowly.with_key("cancelled")
    other = multiprocessing.get_context("fork").Process(target=keyed.remote, args=(runs, end, 1))
    other.start()
    until(Path(runs).exists)
    call = keyed.spawn(runs, end, 1)
    other.kill()
    until(lambda: Path(runs).read_text() == "xx")
    Path(end).touch()
    assert call.get() == bytes(1)


def test_a_chain_hands_results_on() -> None:
    assert app.add.then(app.add, app.double_unless_three).remote(1, b=2) == 8
    with pytest.raises(ValueError, match="not 3"):
        app.add.then(app.double_unless_three).remote(2)
    chain = app.add.then(app.double_unless_three)
    assert list(chain.map([3, 4])) == [8, 10]
    assert chain.spawn(3).get() == 8
    assert chain.with_key("a chain's").remote(4) == 10

    async def calls() -> None:
        assert await (await chain.spawn.aio(3)).get.aio() == 8
        assert [x async for x in chain.map.aio([3, 4])] == [8, 10]

    asyncio.run(calls())
    for broken in (lambda: app.add.then(app.count_to), lambda: app.count_to.then(app.add)):
        with pytest.raises(nubes.UsageError, match="cannot be part of a chain"):
            broken()


def test_functions_call_functions() -> None:
    assert app.ask_another.remote(4) == 1 + 2 + 3 + 4 + 5


def test_calls_from_many_threads() -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(app.add.remote, range(200))) == list(range(1, 201))


def test_calls_from_a_forked_client() -> None:
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(app.add.remote(41) if client.connect() else 1)
        finally:
            os._exit(1)
    assert app.add.remote(1) == 2
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42


def test_a_deployed_function_is_found_by_name() -> None:
    found = nubes.Function.from_name("calls", "add")
    assert found.remote(1) == 2
    assert list(nubes.Function.from_name("calls", "count_to").remote(2)) == [0, 1]
    with pytest.raises(nubes.NotFound, match="Did you mean .*calls/add"):
        nubes.Function.from_name("calls", "ad")


def test_a_syntax_error_says_where(tmp_path: Path) -> None:
    broken = tmp_path / "broken_app.py"
    broken.write_text("import nubes\napp = nubes.App('broken')\n@app.function()\ndef f():\n    return 1\n")
    text = (
        f"sys.path.insert(0, {str(tmp_path)!r})\nimport broken_app, pathlib\n"
        "pathlib.Path(broken_app.__file__).write_text('def f(:\\n')\n"
        "with broken_app.app.run():\n    broken_app.f.remote()\n"
    )
    _, err = script(text).communicate(timeout=30)
    assert "SyntaxError" in err
    assert "broken_app.py" in err


def test_a_script_run_as_main(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(
        "import nubes\nfrom dataclasses import dataclass\napp = nubes.App('main')\n"
        "@dataclass\nclass Point:\n    x: int\n"
        "@app.function()\ndef move(p):\n    assert isinstance(p, Point)\n    return Point(p.x + 1)\n"
        "if __name__ == '__main__':\n    with app.run():\n"
        "        print(move.remote(Point(1)), list(move.map([Point(5)])))\n"
        "        print(isinstance(move.remote(Point(1)), Point))\n"
    )
    done = subprocess.run([sys.executable, str(tmp_path / "main.py")], capture_output=True, text=True, timeout=30)
    assert done.stdout.splitlines() == ["Point(x=2) [Point(x=6)]", "True"], done.stderr


@pytest.mark.parametrize("function", [app.refused, app.refused_async, app.refused_batch])
def test_that_a_callee_pushed_back_is_told_to_policies(plane: Path, function: Any) -> None:
    with pytest.raises(app.PushedBack):
        function.remote(*([1] if function is app.refused_batch else []))

    def told() -> set[str]:
        decode = Codec(e.EVENTS).decode
        events = [decode(record)[1] for record in read(plane / "log")]
        mine = {one.call for one in events if isinstance(one, e.Submitted) and one.function == function.spec.name}
        return {one.backpressure for one in events if isinstance(one, e.Finished) and one.call in mine}

    assert until(told) == {"a service"}
