"""The commands that speak to a running control plane."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cli.command_line import COMMAND, Nubes


def said(ran: subprocess.CompletedProcess[str]) -> Any:
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.fixture(scope="module")
def shop(cloud: Nubes) -> Nubes:
    deployed = said(cloud("deploy", "shop.py", "--json"))
    assert (deployed["app"], deployed["version"]) == ("shop", 1)
    assert "shop/add" in deployed["functions"]
    return cloud


@pytest.mark.parametrize(
    ("words", "code", "out"),
    [
        (["shop/add", "1", "2"], 0, "3\n"),
        (["shop/add", "1", "--b", "5"], 0, "6\n"),
        (["shop/add", '{"a": 1, "b": 9}', "--json"], 0, "10\n"),
        (["shop/add", "[3, 4]"], 0, "7\n"),
        (["shop/count", "3"], 0, "0\n1\n2\n"),
        (["shop/Box.hold", "4"], 0, "4\n"),
        (["shop/Box.parts", "2"], 0, "0\n1\n"),
        (["shop/Box.parts", "2", "--json"], 0, "0\n1\n"),
        (["shop/fail", "x"], 1, ""),
        (["shop/leave", "3"], 3, ""),
        (["shop/late"], 124, ""),
        (["shop/ad"], 2, ""),
    ],
)
def test_invoke(shop: Nubes, words: list[str], code: int, out: str) -> None:
    ran = shop("invoke", "-q", *words)
    assert (ran.returncode, ran.stdout) == (code, out), ran.stderr


def test_calls_can_be_spawned_seen_fetched_and_cancelled(shop: Nubes) -> None:
    call = said(shop("invoke", "shop/sleep", "60", "--spawn", "--json"))["call_id"]
    early = shop("call", "get", call, "--timeout", "0")
    assert early.returncode == 124
    assert "has not ended yet" in early.stderr
    listed = {one["id"]: one for one in said(shop("call", "list", "--json"))}
    assert (listed[call]["function"], listed[call]["durable"]) == ("shop/sleep", True)
    assert shop("stop", call).stdout == f"{call} is cancelled.\n"
    assert shop("call", "get", call).returncode == 130
    quick = shop("run", "-d", "shop.py::sleep", "0").stdout.splitlines()[0]
    assert shop("call", "get", quick).stdout == "slept\n"


def test_ps_for_people_and_programs(shop: Nubes) -> None:
    shop("invoke", "shop/add", "1")
    status = said(shop("ps", "--json"))
    assert status["apps"]["shop"]["ephemeral"] is False
    assert {"shop/add", "shop/sleep"} <= {f["name"] for f in status["functions"]}
    held = status["memory_used_bytes"] + sum(p["memory_bytes"] for p in status["parents"])
    assert status["dollars_per_hour"] == pytest.approx(held / 2**30 * 0.0000166667 * 3600)
    assert status["dollars_per_hour"] > 0
    assert any(i["function"] == "shop/add" and i["pid"] > 0 for i in status["instances"])
    shown = shop("ps").stdout
    for word in ("Apps", "Functions", "Instances", "Parents", "shop/add", "an hour at list price"):
        assert word in shown
    assert "\033" not in shown


def test_logs_by_app_function_call_and_text(shop: Nubes) -> None:
    call = said(shop("invoke", "shop/add", "1", "--spawn", "--json"))["call_id"]
    shop("call", "get", call)
    time.sleep(0.3)
    lines = [json.loads(line) for line in shop("logs", call, "--json").stdout.splitlines()]
    assert [(one["text"], one["stream"], one["function"], one["call_id"]) for one in lines] == [
        ("adding", "stdout", "shop/add", call),
        ("to the other", "stderr", "shop/add", call),
    ]
    assert shop("logs", "shop/add", "--search", "other", "--tail", "1").stdout == "[add] to the other\n"
    assert shop("logs", "shop", "--since", "1h").stdout
    assert shop("logs", "shop/sleep").stdout == ""
    assert shop("logs", "--since", "2090-01-01").stdout == ""


def test_logs_follow(shop: Nubes, cloud: Nubes) -> None:
    data = said(shop("ps", "--json"))["folder"]
    env = {**os.environ, "NUBES_DATA": data}
    following = subprocess.Popen(
        [*COMMAND, "logs", "shop/add", "-f", "--tail", "0"], env=env, stdout=subprocess.PIPE, text=True
    )
    assert following.stdout is not None
    seen: list[str] = []
    reading = threading.Thread(target=lambda: seen.append(following.stdout.readline()))  # type: ignore[union-attr]
    reading.start()
    until = time.monotonic() + 30
    while not seen and time.monotonic() < until:
        shop("invoke", "-q", "shop/add", "1")
    reading.join(10)
    following.terminate()
    following.wait(10)
    assert seen == ["[add] adding\n"]


def test_policies_are_switched_live(shop: Nubes) -> None:
    assert (
        said(shop("policy", "set", "keep-alive", "fixed-window(keep=3m)", "--json"))["policy"]
        == "fixed-window(keep=3m)"
    )
    assert said(shop("ps", "--json"))["policies"]["keep-alive"] == "fixed-window(keep=3m)"
    of_one = shop("policy", "set", "balancing", "prequal", "--function", "shop/add")
    assert of_one.stdout == "From now on prequal decides on balancing of shop/add.\n"
    assert {f["name"]: f["balancing"] for f in said(shop("ps", "--json"))["functions"]}["shop/add"] == "prequal"
    refused = shop("policy", "set", "queueing", "edf", "--function", "shop/add")
    assert refused.returncode == 2
    assert "queueing decides for all functions together" in refused.stderr
    assert "Did you mean shop/add" in shop("policy", "set", "balancing", "prequal", "--function", "shop/ad").stderr
    rows = {(r["seam"], r["policy"]): r for r in said(shop("policy", "list", "--json"))}
    assert rows["keep-alive", "fixed-window"]["live"]
    assert rows["keep-alive", "hybrid-histogram"]["paper"]["venue"]
    only = said(shop("policy", "list", "queueing", "--json"))
    assert {r["seam"] for r in only} == {"queueing"}


def test_versions_history_and_stop(cloud: Nubes, tmp_path: Path) -> None:
    file = tmp_path / "brief.py"
    file.write_text("import nubes\napp = nubes.App('brief')\n@app.function()\ndef f(): pass\n")
    for version in (1, 2):
        assert said(cloud("deploy", str(file), "--json"))["version"] == version
    assert "brief" in {a["app"] for a in said(cloud("app", "list", "--json"))}
    assert cloud("stop", "brief").returncode == 0
    assert "brief" not in {a["app"] for a in said(cloud("app", "list", "--json"))}
    history = said(cloud("app", "history", "brief", "--json"))
    assert [(h["what"], h["version"]) for h in history] == [("deployed", 1), ("deployed", 2), ("stopped", None)]
    again = cloud("stop", "brief")
    assert again.returncode == 2
    assert "No app 'brief' is deployed." in again.stderr
    assert "There were: " in cloud("app", "history", "nope").stderr


def test_two_servers_and_a_port_that_is_taken(cloud: Nubes, nubes: Nubes) -> None:
    data = said(cloud("ps", "--json"))["folder"]
    url = (Path(data) / "url").read_text().strip()
    port = url.rpartition(":")[2]
    for words in (["up", "--port", "0"], ["up", "--port", port], ["up", "-d", "--port", "0"]):
        second = cloud(*words)
        assert second.returncode == 1
        assert len(second.stderr.strip().splitlines()) == 1
        assert "already runs" in second.stderr
        assert "nubes down" in second.stderr
    other = nubes("up", "--port", port)
    assert other.returncode == 1
    assert f"Port {port} on 127.0.0.1 is in use. Choose another with --port" in other.stderr
    assert cloud("ps").returncode == 0  # the first one was not disturbed


def test_down_twice_and_what_was_accepted_goes_on(nubes: Nubes, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import nubes\napp = nubes.App('a')\n@app.function()\ndef f(x: int):\n    return x + 1\n"
    )
    assert nubes("up", "-d", "--port", "0").returncode == 0
    assert nubes("deploy", "app.py").returncode == 0
    call = nubes("invoke", "a/f", "1", "--spawn").stdout.strip()
    assert "has ended" in nubes("down").stdout
    assert "Nothing runs" in nubes("down").stdout
    assert nubes("up", "-d", "--port", "0").returncode == 0
    assert nubes("call", "get", call).stdout == "2\n"
    assert said(nubes("down", "--json"))["was_running"] is True


def test_recorded_runs_can_be_replayed_and_explained(shop: Nubes) -> None:
    call = said(shop("invoke", "shop/add", "1", "--spawn", "--json"))["call_id"]
    shop("call", "get", call)
    time.sleep(0.2)
    why = said(shop("why", call, "--json"))
    assert (why["call"], why["function"], why["status"]) == (call, "shop/add", "SUCCEEDED")
    assert why["steps"]
    balanced = said(shop("replay", "--keep-alive", "lru", "--balancing", "latest,prequal", "--json"))
    assert [row["label"] for row in balanced["rows"]] == ["latest", "prequal"]
    assert "no function says that it may run twice" in shop("replay", "--hedging", "none,tail-at-scale").stderr
    report = said(shop("replay", "--keep-alive", "fixed-window,cidre", "--html", "page.html", "--json"))
    assert [row["label"] for row in report["rows"]] == ["fixed-window", "cidre"]
    assert report["gap"]["gap"]
    folder = Path(said(shop("ps", "--json"))["folder"]).parent
    assert "<svg" in (folder / "page.html").read_text()
    assert "fc-7zz" in shop("why", "fc-7zz").stderr


def test_papers(nubes: Nubes) -> None:
    entries = {p["id"]: p for p in said(nubes("papers", "--json"))}
    assert {"hybrid-histogram", "seuss", "xfaas"} <= set(entries)
    assert set(entries["seuss"]) == {"id", "name", "title", "venue", "area", "seam", "mode", "holds"}
    wrong = nubes("reproduce", "hybrid-histgram")
    assert wrong.returncode == 2
    assert "hybrid-histogram" in wrong.stderr


def test_try_your_own_policy(nubes: Nubes, tmp_path: Path) -> None:
    own = "from nubes.functions.policies.fixed_window import FixedWindow\n\nclass Mine(FixedWindow):\n    'A copy.'\n"
    (tmp_path / "mine.py").write_text(own)
    words = ("--seam", "keep-alive", "--trace", "poisson(functions=3,length=5m)", "--seeds", "1")
    trial = said(nubes("try", "mine.py", *words, "--html", "trial.html", "--json"))
    assert trial["candidate"] == "mine.py"
    assert [o["policy"] for o in trial["opponents"] if o["tie"]].count("fixed-window") == 1
    assert "mine.py" in (tmp_path / "trial.html").read_text()
    (tmp_path / "cheat.py").write_text("import time\n" + own.replace("'A copy.'", "at = time.time()"))
    refused = nubes("try", "cheat.py", *words)
    assert refused.returncode == 2
    assert "time" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
