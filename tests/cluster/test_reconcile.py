"""Objects, versions and controllers that look, compare and act; and real processes kept as declared."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nubes.cluster.processes import Processes, observe
from nubes.cluster.reconcile import Conflict, Deployments, Object, Store, matches, settle
from nubes.kernel.errors import NotFound, NubesError, UsageError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "store.db")
    yield made
    for pids in observe(made.id).values():
        for pid in pids:
            os.killpg(pid, signal.SIGKILL)
    made.close()


def deployment(replicas: int, app: str = "web", command: tuple[str, ...] = ("sleep", "100")) -> dict[str, object]:
    return {"replicas": replicas, "selector": {"app": app}, "template": {"spec": {"command": list(command)}}}


def test_a_write_of_what_has_changed_is_refused(store: Store) -> None:
    first = store.create(Object(kind="note", name="a", spec={"text": "one"}))
    again = store.get("note", "a")
    assert first == again
    second = store.update(msgspec.structs.replace(again, spec={"text": "two"}))
    assert second.version > first.version == 1
    for write in (store.update, store.delete):
        with pytest.raises(Conflict):
            write(msgspec.structs.replace(first, spec={"text": "three"}))
    with pytest.raises(Conflict):
        store.create(Object(kind="note", name="a"))
    assert store.get("note", "a") == second
    store.delete(second)
    store.delete(second)
    with pytest.raises(NotFound):
        store.update(second)
    with pytest.raises(NotFound):
        store.get("note", "a")
    with pytest.raises(UsageError, match="not read"):
        store.update(Object(kind="note", name="a"))


def test_a_change_is_made_on_what_is_there(store: Store) -> None:
    store.apply("note", "a", {})
    seen = 0

    def edit(one: Object) -> Object:
        nonlocal seen
        seen += 1
        if seen == 1:  # somebody comes between
            store.apply("note", "a", {"other": 1})
        return msgspec.structs.replace(one, spec={**one.spec, "mine": 1})

    changed, tries = store.change("note", "a", edit)
    assert (changed.spec, tries) == ({"other": 1, "mine": 1}, 1)
    version = store.version
    store.change("note", "a", lambda one: one)
    store.apply("note", "a", changed.spec)
    assert store.version == version  # nothing changed, nothing written


def test_two_writers_lose_no_update(tmp_path: Path) -> None:
    Store(tmp_path / "s.db").apply("counter", "one", {})

    def write() -> None:
        mine = Store(tmp_path / "s.db")
        for _ in range(50):
            mine.change("counter", "one", lambda c: msgspec.structs.replace(c, status={"n": c.status.get("n", 0) + 1}))

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Store(tmp_path / "s.db").get("counter", "one").status == {"n": 100}


def test_labels_select(store: Store) -> None:
    for name, labels in (("a", {"app": "web", "tier": "1"}), ("b", {"app": "web"}), ("c", {})):
        store.apply("process", name, {}, labels)
    assert [one.name for one in store.list("process", {"app": "web"})] == ["a", "b"]
    assert [one.name for one in store.list("process")] == ["a", "b", "c"]
    assert matches({"a": "1"}, {})


def test_a_deployment_has_its_replicas_and_those_without_one_go(store: Store) -> None:
    store.apply("deployment", "web", deployment(3))
    settle(store, [Deployments()])
    first = store.list("process")
    assert len(first) == 3
    assert all(one.labels == {"app": "web"} and one.owner == "web" for one in first)
    assert store.get("deployment", "web").status == {"replicas": 3}
    store.apply("deployment", "web", deployment(1))
    settle(store, [Deployments()])
    assert [one.name for one in store.list("process")] == [min(first, key=lambda one: one.version).name]
    store.delete(store.get("deployment", "web"))
    settle(store, [Deployments()])
    assert store.list("process") == []


def test_an_edited_label_takes_a_process_out_of_its_set(store: Store) -> None:
    store.apply("deployment", "web", deployment(2))
    settle(store, [Deployments()])
    suspect = store.list("process")[0].name
    store.change("process", suspect, lambda one: msgspec.structs.replace(one, labels={"app": "web-debug"}))
    settle(store, [Deployments()])
    assert store.get("process", suspect).owner == ""
    assert len([one for one in store.list("process") if one.owner == "web"]) == 2


def test_controllers_that_undo_each_other_are_noticed(store: Store) -> None:
    class Never:
        def reconcile(self, store: Store) -> int:
            return 1

    with pytest.raises(NubesError, match="not done after 5 rounds"):
        settle(store, [Never()], rounds=5)


class Cut(Exception):
    pass


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=12))
def test_a_controller_that_is_cut_off_at_any_write_goes_on(moves: list[tuple[int, int, int]]) -> None:
    store = Store(":memory:")
    wanted = {}
    write = store._write
    for which, replicas, writes in moves:
        wanted[f"d{which}"] = replicas
        store.apply("deployment", f"d{which}", deployment(replicas, f"d{which}"))
        left = writes

        def cut(object: Object, expected: int) -> Object:
            nonlocal left
            if not left:
                raise Cut
            left -= 1
            return write(object, expected)

        store._write = cut  # type: ignore[method-assign]
        try:
            settle(store, [Deployments()])
        except Cut:
            pass
        store._write = write  # type: ignore[method-assign]
    settle(store, [Deployments(), Deployments()])
    for name, replicas in wanted.items():
        assert len([one for one in store.list("process") if one.owner == name]) == replicas
    assert len(store.list("process")) == sum(wanted.values())
    store.close()


def settled(store: Store, processes: Processes, count: int) -> dict[str, list[int]]:
    until = time.monotonic() + 20.0
    while time.monotonic() < until:
        busy = Deployments().reconcile(store) + processes.reconcile(store)
        running = observe(store.id)
        if not busy and sum(map(len, running.values())) == count:
            break
        time.sleep(0.01)
    return running


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="processes are found through /proc")
def test_processes_are_started_adopted_and_ended(store: Store) -> None:
    store.apply("deployment", "web", deployment(3))
    running = settled(store, Processes(), 3)
    assert sorted(running) == [one.name for one in store.list("process")]
    assert settled(store, Processes(), 3) == running  # another controller knows nothing and starts nothing
    assert {one.status["pid"] for one in store.list("process")} == {pids[0] for pids in running.values()}
    os.killpg(next(iter(running.values()))[0], signal.SIGKILL)
    while sum(map(len, observe(store.id).values())) == 3:
        time.sleep(0.01)
    again = settled(store, Processes(), 3)
    assert set(again) == set(running)
    assert again != running
    store.apply("deployment", "web", deployment(1))
    assert len(settled(store, Processes(), 1)) == 1


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="processes are found through /proc")
def test_what_does_not_want_to_end_is_killed_and_what_it_started_is_its_own(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nubes.cluster.processes.GRACE_S", 0.2)
    code = "import signal, subprocess, time; signal.signal(15, signal.SIG_IGN); subprocess.Popen(['sleep', '99']); print('on', flush=True); time.sleep(99)"
    store.apply("deployment", "web", deployment(1, command=(sys.executable, "-c", code)))
    processes = Processes()
    ((name, (pid,)),) = settled(store, processes, 1).items()
    time.sleep(0.5)
    assert settled(store, processes, 1) == {name: [pid]}
    store.apply("deployment", "web", deployment(0))
    assert settled(store, processes, 0) == {}
