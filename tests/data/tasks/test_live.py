"""Tasks, actors and losses on real worker processes."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from nubes import CallTimeout, InstanceDied, NotFound, Unavailable, UsageError, tasks
from nubes.data.tasks.models import Hardware

LARGE = 20_000  # numbers in an array: more than travels within a message


@tasks.task
def add(x, y=0):
    return x + y


@tasks.task
def nap(seconds, value=None):
    time.sleep(seconds)
    return value


@tasks.task
def more(array):
    return array + 1


@tasks.task
def fib(n):
    return n if n < 2 else sum(tasks.get([fib.submit(n - 1), fib.submit(n - 2)]))


@tasks.actor(checkpoint_every=100)
class Counter:
    def __init__(self, start, mark=None):
        self.total, self.mark = start, mark

    def add(self, n):
        self.total += n
        if self.mark is not None:
            with open(self.mark, "a") as file:
                file.write(f"{self.total}\n")
        return self.total

    def relay(self, ref):
        return tasks.get(add.submit(ref, self.total))

    def pid(self):
        return os.getpid()


@pytest.fixture(scope="module")
def shared():
    with tasks.Pool(workers=2) as pool:
        yield pool


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_results_as_arguments(shared):
    refs = [add.submit(n, y=1) for n in range(100)]
    total = refs[0]
    for ref in refs[1:]:
        total = add.submit(total, ref)
    assert total.get() == sum(range(1, 101))
    assert tasks.get(refs) == list(range(1, 101))
    assert tasks.get([]) == []
    assert add(1, y=2) == 3


def test_undeclared_functions_and_closures(shared):
    offset = 5
    assert shared.submit(lambda x: x + offset, (1,), {}).get() == 6


def test_what_a_task_raises_is_raised_by_all_that_read_it(shared):
    @tasks.task
    def fails():
        raise ValueError("no")

    ref = add.submit(add.submit(fails.submit(), 1), 1)
    with pytest.raises(ValueError, match="no"):
        ref.get()
    with pytest.raises(ValueError, match="no"):
        tasks.get([add.submit(1), ref])


def test_wait_gives_the_first_k(shared):
    slow, quick = nap.submit(1.0, "slow"), nap.submit(0.0, "quick")
    done, rest = tasks.wait([slow, quick], k=1)
    assert (done, rest) == ([quick], [slow])
    assert tasks.wait([slow], k=1, timeout=0) == ([], [slow])
    with pytest.raises(CallTimeout):
        slow.get(timeout="1ms")
    done, rest = tasks.wait([slow, quick], k=2)
    assert (done, rest) == ([slow, quick], [])
    with pytest.raises(UsageError):
        tasks.wait([slow], k=2)


def test_tasks_submit_tasks_and_wait_for_them(shared):
    assert fib.submit(9).get(timeout=60) == 34


def test_a_task_that_waits_does_not_hold_up_others(shared):
    @tasks.task
    def parent(depth):
        return 1 + (tasks.get(parent.submit(depth - 1)) if depth else 0)

    assert tasks.get([parent.submit(4) for _ in range(4)], timeout=60) == [5] * 4


def test_arrays_come_through_shared_memory_and_are_nobody_elses(shared):
    ref = shared.put(np.zeros(LARGE))
    first, second = ref.get(), ref.get()
    first[0] = 7
    assert second[0] == 0
    assert more.submit(ref).get().sum() == LARGE
    assert more.submit(np.ones(LARGE)).get().sum() == 2 * LARGE


def test_a_reference_within_a_value(shared):
    @tasks.task
    def reads(found):
        return tasks.get(found["ref"]) + 1

    assert reads.submit({"ref": add.submit(1, 2)}).get() == 4


def test_memory_is_given_back(shared):
    folder = shared._folder.path
    until(lambda: not list(folder.glob("seg-*")))
    refs = [more.submit(np.ones(LARGE)) for _ in range(5)]
    tasks.get(refs)
    assert len(list(folder.glob("seg-*"))) >= 5
    del refs
    until(lambda: not list(folder.glob("seg-*")))


def test_actors_run_their_calls_in_turn(shared):
    counter = Counter.submit(10)
    assert tasks.get([counter.add.submit(1) for _ in range(50)]) == list(range(11, 61))
    assert counter.add.submit(add.submit(1, 1)).get() == 62
    assert counter.relay.submit(add.submit(1)).get() == 63
    with pytest.raises(AttributeError):
        _ = counter.missing
    assert Counter(3).add(1) == 4


def test_a_handle_can_be_passed_on(shared):
    @tasks.task
    def uses(counter):
        return tasks.get(counter.add.submit(5))

    counter = Counter.submit(1)
    assert uses.submit(counter).get() == 6
    assert counter.add.submit(0).get() == 6


def test_a_killed_worker_that_holds_a_chain_of_200_objects():
    with tasks.Pool(workers=1) as pool:
        chain = [pool.put(np.zeros(LARGE))]
        for _ in range(200):
            chain.append(more.submit(chain[-1]))
        assert chain[-1].get()[0] == 200
        (node,) = pool.pids
        assert len(pool._driver.held[node]) == 200
        os.kill(pool.pids[node], signal.SIGKILL)
        until(lambda: node not in pool.pids)
        assert [int(one[0]) for one in tasks.get(chain)] == list(range(201))
        assert pool.controller.rerun == 200


@pytest.mark.parametrize("moment", [0.0, 0.01, 0.05, 0.1])
def test_workers_killed_at_any_moment(moment):
    with tasks.Pool(workers=2) as pool:
        refs = [more.submit(np.full(LARGE, n)) for n in range(40)]
        counter = Counter.submit(0)
        counts = [counter.add.submit(1) for _ in range(250)]
        sums = [add.submit(a, b) for a, b in itertools.pairwise(refs)]
        time.sleep(moment)
        for pid in list(pool.pids.values()):
            os.kill(pid, signal.SIGKILL)
        assert [int(one[0]) for one in tasks.get(sums)] == [2 * n + 3 for n in range(39)]
        assert tasks.get(counts) == list(range(1, 251))


def test_an_actor_goes_on_from_its_checkpoint(tmp_path: Path):
    mark = tmp_path / "ran"
    with tasks.Pool(workers=2) as pool:
        counter = Counter.submit(0, str(mark))
        for _ in range(10):
            tasks.get([counter.add.submit(1) for _ in range(55)])
        os.kill(counter.pid.submit().get(), signal.SIGKILL)
        assert counter.add.submit(1).get() == 551
        assert pool.controller.replayed == 51  # 50 calls since the checkpoint, and that for the pid
    ran = [int(line) for line in mark.read_text().split()]
    assert sorted(set(ran)) == list(range(1, 552))
    assert len(ran) == 551 + 50


def test_a_task_that_kills_its_workers_is_given_up():
    @tasks.task
    def deadly():
        os._exit(3)

    with tasks.Pool(workers=1) as pool:
        ref = deadly.submit()
        with pytest.raises(InstanceDied, match="deadly"):
            ref.get(timeout=60)
        assert add.submit(1, 1).get() == 2
        assert len(pool.pids) == 1


def test_workers_with_something_special():
    with tasks.Pool(workers=2, resources=[{"gpu": 1}]):

        @tasks.task(needs={"gpu": 1})
        def where():
            return os.getpid()

        assert len(set(tasks.get([where.submit() for _ in range(20)]))) == 1


def test_what_ran_can_be_compared_under_other_policies():
    with tasks.Pool(workers=2, record=True) as pool:
        source = more.submit(np.zeros(LARGE))
        tasks.get([more.submit(source) for _ in range(20)])
    assert len(pool.recorded) == 21
    found = {o.placement: o for o in tasks.compare(pool.recorded, ["bottom-up", "random"], Hardware(4))}
    assert found["bottom-up"].moved_bytes <= found["random"].moved_bytes
    assert all(one.makespan_s > 0 for one in found.values())


def test_a_closed_pool_says_so():
    with tasks.Pool(workers=1) as pool:
        ref = add.submit(1)
        pids = list(pool.pids.values())
        folder = pool._folder.path
    with pytest.raises(Exception, match="closed"):
        ref.get()
    assert not folder.exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_who_waits_when_a_pool_is_closed_hears_of_it():
    found = []
    with tasks.Pool(workers=1):
        ref = nap.submit(60)

        def wait():
            with pytest.raises(Unavailable):
                ref.get()
            found.append(True)

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.1)
    thread.join(timeout=10)
    assert found


def test_many_threads_submit(shared):
    found: list[int] = []

    def use(n: int) -> None:
        found.append(sum(tasks.get([add.submit(n, k) for k in range(50)])))

    threads = [threading.Thread(target=use, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [50 * n + 1225 for n in range(8)]


def test_an_object_that_was_let_go_of(shared):
    ref = add.submit(1)
    ref.get()
    id, session = ref.id, ref._session
    del ref
    until(lambda: id not in shared.controller.table)
    from nubes.data.tasks.session import Borrowed

    with pytest.raises(NotFound):
        Borrowed(id, session).get()


SCRIPT = """
import os, sys, time
from nubes import tasks

@tasks.task
def where():
    return os.getpid()

if __name__ == "__main__":
    print(where.submit().get(), flush=True)
    if sys.argv[1:]:
        time.sleep(60)
"""


def test_a_script_without_a_pool_leaves_nothing_behind(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not Path(f"/proc/{int(done.stdout)}").exists()


def test_workers_end_with_a_program_that_is_killed(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    driver = subprocess.Popen([sys.executable, str(script), "stay"], stdout=subprocess.PIPE, text=True)
    worker = Path(f"/proc/{int(driver.stdout.readline())}")
    assert worker.exists()
    driver.kill()
    driver.wait()
    until(lambda: not worker.exists() or "Z" in worker.joinpath("stat").read_text().split()[2])
