"""Dicts, queues, volumes and secrets, shared between functions and clients."""

from __future__ import annotations

import asyncio
import io
import os
import queue
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from real import script, until

import nubes
from nubes import client
from nubes.client.connection import Connection
from nubes.drivers.local import wire

STATES = ("folder", "servers")
SLOW_STATES = ("ray",)


@pytest.fixture(scope="module", autouse=True)
def running(plane: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    global app
    sys.modules.pop("storage_app", None)  # made anew for each control plane: it names a folder of its own
    os.environ["TEST_MOUNT"] = str(tmp_path_factory.mktemp("mount") / "volume")
    import storage_app as app

    with pytest.raises(nubes.NotFound, match="no secret named 'kept'"), app.app.run():
        pass
    nubes.Secret.objects.create("kept", {"WRONG": "1"})
    with pytest.raises(nubes.NotFound, match="has no TOKEN"), app.app.run():
        pass
    nubes.Secret.objects.delete("kept")
    nubes.Secret.objects.create("kept", {"TOKEN": "hush-hush"})
    with app.app.run():
        yield


# -- Dict ----------------------------------------------------------------------------------------------------------


def test_a_dict_has_a_dicts_manners() -> None:
    with nubes.Dict.ephemeral() as shared:
        own: dict[object, object] = {}
        for d in (shared, own):
            d["a"] = 1
            d[("t", 2)] = [1, 2]
            d.update({"b": None, 3: {"x": b"y"}}, c="see")
            d["a"] = 9
            assert d.pop("c") == "see"
            assert d.pop("c", "gone") == "gone"
            with pytest.raises(KeyError):
                d.pop("c")
            with pytest.raises(KeyError):
                d["c"]
            del d["b"]
        assert list(shared.keys()) == list(own.keys())
        assert list(shared.values()) == list(own.values())
        assert list(shared.items()) == list(own.items())
        assert len(shared) == shared.len() == len(own)
        assert ("a" in shared, "z" in shared, shared.contains("a")) == (True, False, True)
        assert shared.get("z") is None
        assert shared.get("z", 5) == 5
        assert shared
        shared.clear()
        assert (len(shared), bool(shared)) == (0, True)
        shared["none"] = None
        assert shared["none"] is None
        assert "none" in shared
    with pytest.raises(nubes.NotFound):
        shared.get("a")


def test_a_dict_is_shared_with_functions() -> None:
    for word in ("x", "y", "x"):
        app.count.remote(word)
    assert dict(app.counts.items()) == {"x": 2, "y": 1}
    assert sorted(app.claim.map(["a", "b", "c", "d"])) == [False, False, False, True]
    assert app.counts["winner"] in "abcd"


def test_named_objects() -> None:
    with pytest.raises(nubes.NotFound, match="create_if_missing=True"):
        nubes.Dict.from_name("not-made").len()
    with pytest.raises(nubes.UsageError, match="cannot be the name"):
        nubes.Dict.from_name("../up")
    nubes.Dict.objects.create("made")
    nubes.Dict.objects.create("made", allow_existing=True)
    with pytest.raises(nubes.UsageError, match="already"):
        nubes.Dict.objects.create("made")
    assert "made" in [d.name for d in nubes.Dict.objects.list()]
    assert "made" not in [q.name for q in nubes.Queue.objects.list()]
    nubes.Dict.objects.delete("made")
    nubes.Dict.objects.delete("made", allow_missing=True)
    with pytest.raises(nubes.NotFound):
        nubes.Dict.objects.delete("made")


def test_what_cannot_be_stored_is_said() -> None:
    with nubes.Dict.ephemeral() as d, pytest.raises(nubes.UsageError, match="cannot be stored"):
        d["lock"] = threading.Lock()


# -- Queue ---------------------------------------------------------------------------------------------------------


def test_a_queue_has_a_queues_manners() -> None:
    with nubes.Queue.ephemeral(max_items=3) as q:
        q.put("a")
        q.put_many(["b", {"c": 1}])
        with pytest.raises(queue.Full):
            q.put("d", block=False)
        with pytest.raises(queue.Full):
            q.put_many(["d", "e"], timeout=0.1)
        assert q.len() == len(q) == 3
        assert q.iterate() == ["a", "b", {"c": 1}]
        assert q.get() == "a"
        assert q.get_many(10) == ["b", {"c": 1}]
        assert q.get(block=False) is None
        assert q.get_many(2, block=False) == []
        begun = time.monotonic()
        with pytest.raises(queue.Empty):
            q.get(timeout=0.2)
        assert time.monotonic() - begun >= 0.2
        with pytest.raises(nubes.UsageError, match="at most 3"):
            q.put_many(range(4))


def test_partitions_know_nothing_of_each_other() -> None:
    with nubes.Queue.ephemeral() as q:
        q.put(1)
        q.put(2, partition="p")
        assert q.get(partition="p") == 2
        assert (q.len(), q.len(partition="p"), q.len(total=True)) == (1, 0, 1)
        q.put_many([3, 4], partition="p")
        q.clear(partition="p")
        assert (q.len(total=True), q.get()) == (1, 1)
        q.put_many([3, 4], partition="p")
        q.clear(all=True)
        assert q.len(total=True) == 0


def test_takers_wait_and_each_item_goes_to_one() -> None:
    with nubes.Queue.ephemeral() as source, nubes.Queue.ephemeral() as target:
        calls = [app.forward.spawn(source, target) for _ in range(4)]
        time.sleep(0.3)
        source.put_many(["a", "b"])
        for item in ("c", "d"):
            source.put(item)
        assert sorted(nubes.FunctionCall.gather(*calls)) == ["a", "b", "c", "d"]
        assert sorted(target.get_many(10)) == [("seen", item) for item in "abcd"]


def test_putters_wait_for_room() -> None:
    with nubes.Queue.ephemeral(max_items=1) as q:
        q.put(0)
        threads = [threading.Thread(target=q.put, args=(n,)) for n in (1, 2)]
        for thread in threads:
            thread.start()
        assert q.get() == 0
        assert {q.get(timeout=5), q.get(timeout=5)} == {1, 2}
        for thread in threads:
            thread.join()


def test_many_takers_and_putters_lose_nothing() -> None:
    with nubes.Queue.ephemeral(max_items=5) as q:
        taken: list[int] = []

        def take() -> None:
            while (item := q.get(timeout=20)) is not None:
                taken.append(item)

        takers = [threading.Thread(target=take) for _ in range(4)]
        putters = [threading.Thread(target=lambda n=n: [q.put(n * 100 + i) for i in range(25)]) for n in range(4)]
        for thread in takers + putters:
            thread.start()
        for thread in putters:
            thread.join()
        for _ in takers:
            q.put(None)
        for thread in takers:
            thread.join()
        assert sorted(taken) == [n * 100 + i for n in range(4) for i in range(25)]


def test_the_async_twins() -> None:
    async def use() -> None:
        with nubes.Queue.ephemeral(max_items=1) as q, nubes.Dict.ephemeral() as d:
            await d.put.aio("k", 1)
            assert await d.get.aio("k") == 1
            assert await d.items.aio() == [("k", 1)]
            await q.put.aio(1)
            waiting = asyncio.create_task(q.put.aio(2))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            assert await q.get.aio() == 1
            await waiting
            assert await q.get.aio() == 2
            with pytest.raises(queue.Empty):
                await q.get.aio(timeout=0.05)
            leaves = asyncio.create_task(q.get.aio())
            stays = asyncio.create_task(q.get.aio())
            await asyncio.sleep(0.1)
            leaves.cancel()
            await q.put.aio("for the one who stayed")
            assert await stays == "for the one who stayed"
            await nubes.Dict.objects.create.aio("made-async")
            assert "made-async" in [one.name for one in await nubes.Dict.objects.list.aio()]
            await nubes.Dict.objects.delete.aio("made-async")

    asyncio.run(use())


def ask_to_take(stream: wire.Stream, count: int) -> None:
    """As `Queue.get_many` does, but without a look at the answer."""
    arguments = {"kind": "queue", "name": "transit", "count": count, "partition": "", "timeout": None}
    stream.send(wire.pack(wire.ASK, 1, "store", {"operation": "queue_get", "arguments": arguments}))


def until_left(q: nubes.Queue, items: list[int]) -> None:
    until(lambda: q.iterate() == items)


@pytest.mark.parametrize("how", ["closed", "killed"])
def test_items_on_their_way_to_a_client_that_is_gone_go_back_to_the_front(how: str) -> None:
    q = nubes.Queue.from_name("transit", create_if_missing=True)
    q.clear()
    q.put_many([1, 2, 3])
    if how == "closed":
        connection = Connection(client.connect().path)
        ask_to_take(connection.stream, 2)
        until_left(q, [3])  # the answer lies in the socket, unread
        connection.stream.close()
    else:
        text = (
            "import os, signal, nubes\nfrom nubes import client\nfrom nubes.client.connection import Connection\n"
            "from nubes.drivers.local import wire\nstream = Connection(client.connect().path).stream\n"
            "arguments = dict(kind='queue', name='transit', count=2, partition='', timeout=None)\n"
            "stream.send(wire.pack(wire.ASK, 1, 'store', dict(operation='queue_get', arguments=arguments)))\n"
            "os.kill(os.getpid(), signal.SIGSTOP)"
        )
        process = script(text)
        until_left(q, [3])
        process.kill()
        process.wait()
    until_left(q, [1, 2, 3])
    assert [q.get() for _ in range(3)] == [1, 2, 3]


def test_items_that_arrived_do_not_come_back() -> None:
    q = nubes.Queue.from_name("transit", create_if_missing=True)
    q.clear()
    q.put_many([1, 2, 3])
    connection = Connection(client.connect().path)
    ask_to_take(connection.stream, 2)
    assert connection.stream.recv()[0] == wire.ANSWER
    connection.stream.close()
    connection = Connection(client.connect().path)
    ask_to_take(connection.stream, 1)
    until_left(q, [])
    assert connection.stream.recv()[0] == wire.ANSWER
    connection.stream.send(wire.pack(wire.ASK, 2, "status", {"limit": 0}))  # another answer, which nobody reads
    time.sleep(0.3)
    connection.stream.close()
    time.sleep(0.3)
    assert q.iterate() == []


def test_a_taker_that_is_killed_takes_nothing_with_it() -> None:
    q = nubes.Queue.from_name("orphaned", create_if_missing=True)
    text = "import nubes; print('there', flush=True); nubes.Queue.from_name('orphaned', create_if_missing=True).get()"
    process = script(text)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.3)
    process.kill()
    process.communicate()
    time.sleep(0.2)
    q.put("still here")
    assert q.get(timeout=5) == "still here"


# -- Volume --------------------------------------------------------------------------------------------------------


def test_a_volume_is_a_folder_that_functions_share() -> None:
    assert app.write.remote(app.WHERE, "from-function", "hello") == ["from-function"]
    volume = nubes.Volume.from_name("shared")
    assert b"".join(volume.read_file("from-function")) == b"hello"
    volume.commit()
    volume.reload()
    with volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"from here"), "/deep/er/file")
        batch.put_directory(Path(__file__).parent / "apps", "apps")
    assert "apps" in app.write.remote(app.WHERE, "second", "x")
    assert [e.path for e in volume.listdir("/deep", recursive=True)] == ["deep/er", "deep/er/file"]
    assert [(e.path, e.type, e.size) for e in volume.listdir("/deep/er/file")] == [("deep/er/file", "file", 9)]
    with pytest.raises(nubes.UsageError, match="force=True"):
        upload_again(volume)
    assert "new" not in [e.path for e in volume.iterdir("/")]
    volume.copy_files(["second", "from-function"], "/deep")
    assert b"".join(volume.read_file("deep/second")) == b"x"
    volume.remove_file("second")
    with pytest.raises(nubes.UsageError, match="recursive=True"):
        volume.remove_file("deep")
    volume.remove_file("deep", recursive=True)
    assert "deep" not in [e.path for e in asyncio.run(volume.listdir.aio())]
    with pytest.raises(nubes.NotFound, match="has no 'second'"):
        list(volume.read_file("second"))


def upload_again(volume: nubes.Volume) -> None:
    with volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"new"), "/new")
        batch.put_file(io.BytesIO(b"again"), "/second")


def test_paths_cannot_leave_a_volume(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    with nubes.Volume.ephemeral() as volume:
        with pytest.raises(nubes.NotFound):
            list(volume.read_file(f"../../../../../../..{tmp_path}/secret"))
        (volume.path / "out").symlink_to(tmp_path)
        with pytest.raises(nubes.UsageError, match="leads out"):
            list(volume.read_file("out/secret"))
        folder = volume.path
    assert not folder.exists()


def test_named_volumes() -> None:
    with pytest.raises(nubes.NotFound, match="create_if_missing=True"):
        nubes.Volume.from_name("nothing").listdir()
    nubes.Volume.objects.create("made")
    with pytest.raises(nubes.UsageError, match="already"):
        nubes.Volume.objects.create("made")
    assert [v.name for v in nubes.Volume.objects.list()] == ["made", "shared"]
    nubes.Volume.objects.delete("made")
    with pytest.raises(nubes.NotFound):
        nubes.Volume.objects.delete("made")


# -- Secret --------------------------------------------------------------------------------------------------------


def test_secrets_reach_the_functions_that_name_them_alone() -> None:
    assert app.told.remote() == ("hush-hush", "x y")
    assert app.not_told.remote() == []
    assert [s.name for s in nubes.Secret.objects.list()] == ["kept"]


def test_secrets_stand_in_private_files_and_nowhere_else(plane: Path) -> None:
    app.told.remote()
    holding = []
    for path in plane.rglob("*"):
        if path.is_file() and b"hush-hush" in path.read_bytes():
            holding.append(path)
    if os.environ.get("NUBES_DATABASE"):
        assert holding == []
        return
    assert [path.name for path in holding] == ["kept.json"]
    assert stat.S_IMODE(holding[0].stat().st_mode) == 0o600
    assert "hush" not in repr(nubes.Secret.from_dict({"A": "hush-hush"}))


def test_where_secrets_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text(
        "# a comment\nPLAIN=one # said aside\nexport QUOTED=\"two # not aside\\nline\"\nSINGLE='th\\nree'\nEMPTY=\n\n"
    )
    monkeypatch.setenv("LOCAL_ONE", "here")
    with nubes.Dict.ephemeral():
        other = nubes.App("sources")
        names = ("PLAIN", "QUOTED", "SINGLE", "EMPTY", "LOCAL_ONE", "GIVEN")
        (tmp_path / "below").mkdir()
        secrets = [
            nubes.Secret.from_dotenv(tmp_path / "below"),
            nubes.Secret.from_local_environ(["LOCAL_ONE"]),
            nubes.Secret.from_dict({"GIVEN": "given", "LEFT_OUT": None}),
        ]
        look = other.function(name="look", secrets=secrets)(lambda: {n: os.environ.get(n) for n in names})
        with other.run():
            assert look.remote() == {
                "PLAIN": "one",
                "QUOTED": "two # not aside\nline",
                "SINGLE": "th\\nree",
                "EMPTY": "",
                "LOCAL_ONE": "here",
                "GIVEN": "given",
            }
    missing = nubes.App("missing")
    missing.function(name="f", secrets=[nubes.Secret.from_local_environ(["NOT_SET_ANYWHERE"])])(lambda: 1)
    with pytest.raises(nubes.UsageError, match="NOT_SET_ANYWHERE is not set"), missing.run():
        pass
    with pytest.raises(nubes.UsageError, match="cannot be an environment variable"):
        nubes.Secret.from_dict({"A": 1})  # type: ignore[dict-item]
