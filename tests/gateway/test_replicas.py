"""An LLM served by several engine processes, through the gateway: answers survive the engine that makes them."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gateway.running import Up, deployed
from nubes.kernel.errors import NotFound

openai = pytest.importorskip("openai")
MODEL = "smollm2-135m"
THINGS = ("clouds", "rivers", "bread", "the night sky", "an old ship", "winter")
TOKENS = 120


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    from nubes.llm.checkpoint import find

    try:
        find(MODEL)
    except NotFound as error:
        pytest.skip(str(error))
    with deployed(tmp_path_factory.mktemp("replicas"), "replicaapp.py") as running:
        yield running


@pytest.fixture(scope="module")
def client(up: Up) -> Any:
    return openai.OpenAI(base_url=f"{up.url}/v1", api_key=up.token, max_retries=0, timeout=120)


def processes() -> dict[int, tuple[str, int]]:
    """Name and parent of all there are."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            read = re.findall(r"^(\d+) \((.*)\) \w (\d+)", path.read_text())
        except OSError:
            continue  # it has ended
        found |= {int(pid): (name, int(parent)) for pid, name, parent in read}
    return found


def engines(up: Up) -> dict[int, str]:
    """Process -> name of the engines below `up`."""
    there = processes()

    def below(pid: int) -> bool:
        return pid == up.process.pid or (pid in there and below(there[pid][1]))

    return {pid: name for pid, (name, _) in there.items() if name.startswith("nubes-engine") and below(pid)}


def until_there(up: Up, without: int = 0) -> dict[int, str]:
    end = time.monotonic() + 30
    while len(found := engines(up)) < 2 or without in found:
        assert time.monotonic() < end, f"engines: {found}"
        time.sleep(0.05)
    return found


def streamed(client: Any, thing: str, some: threading.Event | None = None) -> str:
    """A greedy answer; `some` is set when a part of it is there."""
    parts: list[str] = []
    for chunk in client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": f"Write a long poem on {thing}."}], max_tokens=TOKENS,
        temperature=0, stream=True, extra_body={"ignore_eos": True},
    ):  # fmt: skip
        parts.append(chunk.choices[0].delta.content or "")
        if some is not None and len(parts) == 8:
            some.set()
    return "".join(parts)


@pytest.fixture(scope="module")
def wanted(client: Any) -> list[str]:
    """The answers of nobody disturbed."""
    return [streamed(client, thing) for thing in THINGS]


def test_answers_go_on_when_an_engine_is_killed(up: Up, client: Any, wanted: list[str]) -> None:
    victim, name = sorted(until_there(up).items())[0]
    begun = [threading.Event() for _ in THINGS]
    with ThreadPoolExecutor(len(THINGS)) as pool:
        answers = [pool.submit(streamed, client, thing, some) for thing, some in zip(THINGS, begun, strict=True)]
        assert all(some.wait(60) for some in begun)
        assert not any(answer.done() for answer in answers)
        os.kill(victim, signal.SIGKILL)
        assert [answer.result(120) for answer in answers] == wanted
    there = until_there(up, without=victim)
    assert name not in there.values()  # another took its place
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda thing: streamed(client, thing), THINGS[:4])) == wanted[:4]


def test_answers_go_on_when_all_engines_are_killed(up: Up, client: Any, wanted: list[str]) -> None:
    before = until_there(up)
    some = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(streamed, client, THINGS[0], some)
        assert some.wait(60)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        assert answer.result(120) == wanted[0]
    assert not before.keys() & until_there(up).keys()


def test_several_answers_of_one_request_end_with_an_error(up: Up, client: Any) -> None:
    before = until_there(up)
    stream = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Write a long poem on clouds."}], max_tokens=TOKENS, n=2,
        stream=True, extra_body={"ignore_eos": True},
    )  # fmt: skip
    with pytest.raises(openai.APIError, match="engine was lost") as told:
        for count, _ in enumerate(stream):
            if count == 6:
                for pid in before:
                    os.kill(pid, signal.SIGKILL)
    assert told.value.code == "engine_failed"
    until_there(up)
    assert streamed(client, "tea")


def figures(up: Up) -> dict[str, float]:
    with up.client() as http:
        text = http.get(f"/replicas/{MODEL}.web/metrics").text
    return {name: float(at) for name, at in re.findall(r"^nubes_llm_(\w+)\{[^}]*\} (\S+)$", text, re.MULTILINE)}


def test_health_and_metrics(up: Up) -> None:
    until_there(up)
    with up.client() as http:
        assert http.get(f"/replicas/{MODEL}.web/readyz").status_code == 200
    read = figures(up)
    assert read["generation_tokens_total"] > TOKENS * len(THINGS)
    assert read["requests_running"] == 0
    assert read["stalled_seconds"] < 5
    assert read["kv_blocks"] > 0


def test_an_engine_that_hangs_is_not_ready(up: Up, client: Any) -> None:
    """Its process is there, and does nothing: what it owes grows old."""
    there = until_there(up)
    some = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(streamed, client, THINGS[0], some)
        assert some.wait(60)
        for pid in there:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(1.5)
        stalled_s = figures(up)["stalled_seconds"]
        for pid in there:
            os.kill(pid, signal.SIGCONT)
        answer.result(60)
    assert stalled_s > 1.0


def test_engines_end_with_the_instance_that_routes(up: Up, client: Any) -> None:
    before = until_there(up)
    there = processes()
    nursery = there[next(iter(before))][1]
    name, instance = there[nursery]
    assert name == "nubes-weights"
    os.kill(instance, signal.SIGKILL)
    end = time.monotonic() + 30
    while before.keys() & engines(up).keys():
        assert time.monotonic() < end, "engines outlive their instance"
        time.sleep(0.05)
    assert not before.keys() & until_there(up).keys()
    assert streamed(client, "tea")


def test_engines_come_back_without_the_process_that_bore_them(up: Up, client: Any, wanted: list[str]) -> None:
    before, blocks = until_there(up), figures(up)["kv_blocks"]
    engine = next(iter(before))
    os.kill(processes()[engine][1], signal.SIGKILL)
    assert streamed(client, THINGS[0]) == wanted[0]
    os.kill(engine, signal.SIGKILL)
    end = time.monotonic() + 60
    while not engines(up).keys() - before.keys():  # one whose model was loaded anew
        assert time.monotonic() < end
        time.sleep(0.1)
    assert streamed(client, THINGS[0]) == wanted[0]
    assert figures(up)["kv_blocks"] == blocks
