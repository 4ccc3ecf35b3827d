"""Health, metrics, the description, and how the server starts and ends."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.running import NUBES, Up, start
from nubes import __version__
from nubes.gateway.health import STUCK_S, Health


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/version", "/docs"])
def test_these_need_no_token(up: Up, path: str) -> None:
    with up.client(token=False) as client:
        assert client.get(path).status_code == 200


def test_version_and_request_ids(up: Up) -> None:
    with up.client(token=False) as client:
        assert client.get("/version").json() == {"name": "nubes", "version": __version__}
        assert client.get("/livez", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
        made = client.get("/livez", headers={"x-request-id": "not ok\x7f"}).headers["x-request-id"]
        assert len(made) == 32
        assert client.get("/v1/functions").headers["x-request-id"]  # also on errors


def test_the_token_is_the_owners_alone_and_the_server_is_this_machines(up: Up) -> None:
    assert stat.S_IMODE((up.data / "token").stat().st_mode) == 0o600
    assert len(up.token) >= 40
    assert up.url.startswith("http://127.0.0.1:")


def test_metrics_are_prometheus(client: httpx2.Client) -> None:
    client.post("/v1/functions/web/echo/invoke")
    client.post("/v1/functions/web/echo/invoke")
    answer = client.get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    own = {name for name in families if not name.startswith("process_")}
    assert all(name.startswith("nubes_") for name in own)
    expected = """calls call_starts call_latency_seconds call_wait_seconds queued_calls instances instance_start_seconds
        log_flush_seconds http_request_seconds policy_info memory_used_bytes log_records"""
    assert {f"nubes_{name}" for name in expected.split()} <= own
    latency = {
        (s.name, s.labels.get("le")): s.value
        for s in families["nubes_call_latency_seconds"].samples
        if s.labels.get("function") == "web/echo"
    }
    count = latency["nubes_call_latency_seconds_count", None]
    assert count >= 2
    assert latency["nubes_call_latency_seconds_bucket", "+Inf"] == count
    ended = [
        s.value for s in families["nubes_calls"].samples if s.labels == {"function": "web/echo", "status": "SUCCEEDED"}
    ]
    assert ended == [count]
    kinds = {
        s.labels["kind"]: s.value for s in families["nubes_call_starts"].samples if s.labels["function"] == "web/echo"
    }
    assert sum(kinds.values()) == count
    assert kinds["cold"] >= 1


def test_openapi_describes_functions_by_their_signatures(client: httpx2.Client) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    paths = document["paths"]
    body = paths["/v1/functions/web/product/invoke"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"] == {"a": {"type": "number"}, "b": {"type": "number", "default": 2.0}}
    assert body["required"] == ["a"]
    hi = paths["/web/hi"]["get"]
    assert hi["description"] == "Greets."
    assert [(p["name"], p["required"], p["schema"]["type"]) for p in hi["parameters"]] == [
        ("name", True, "string"), ("times", False, "integer"), ("tags", False, "array"),
    ]  # fmt: skip
    assert hi["security"] == []
    assert "/v1/functions/web/count/stream" in paths
    assert "/v1/functions/web/count/invoke" not in paths
    assert "/v1/functions/web/Counter.up/invoke" in paths
    ids = [op["operationId"] for path in paths.values() for op in path.values()]
    assert len(ids) == len(set(ids))


def test_the_page_needs_nothing_from_elsewhere(up: Up) -> None:
    with up.client(token=False) as client:
        page = client.get("/docs").text
    assert "http://" not in page
    assert "https://" not in page
    assert "src=" not in page


def test_a_stop_drains_first(tmp_path: Path) -> None:
    """Told to stop, it is not ready any more, finishes what it does, and ends well."""
    app = tmp_path / "drain.py"
    app.write_text(
        "import time, nubes\napp = nubes.App('drain')\n\n"
        "@app.function()\ndef slow(s: float):\n    time.sleep(s)\n    return s\n"
    )
    running = start(tmp_path / "data")
    try:
        env = {**os.environ, "NUBES_DATA": str(running.data)}
        subprocess.run([*NUBES, "deploy", str(app)], env=env, check=True, stdout=subprocess.DEVNULL, timeout=60)
        answers: list[httpx2.Response] = []
        with running.client() as client, running.client(token=False) as watching:
            assert watching.get("/readyz").status_code == 200
            work = threading.Thread(
                target=lambda: answers.append(client.post("/v1/functions/drain/slow/invoke", json=2.0))
            )
            work.start()
            time.sleep(0.7)
            running.process.send_signal(signal.SIGTERM)
            work.join(30)
        assert answers[0].json()["result"] == 2.0
        assert running.process.wait(30) == 0
        assert not (running.data / "url").exists()
    finally:
        running.process.kill()


# -- readiness, by hand --------------------------------------------------------------------------------------------


def plane(**function: Any) -> Any:
    f = SimpleNamespace(
        **{
            "queued": 1,
            "busy": 0,
            "starting": 0,
            "blocked": False,
            "held_s": float("inf"),
            "spec": SimpleNamespace(name="a/f"),
            **function,
        }
    )
    observers: dict[Any, Any] = {}
    made = SimpleNamespace(
        now=100.0, journal=SimpleNamespace(full="", flushing_since_s=0.0), loop=SimpleNamespace(time=lambda: 1000.0), observers=observers,
        controller=SimpleNamespace(functions={"a/f": f}, cpu_used=0.0), observe=observers.__setitem__,
    )  # fmt: skip
    made.clock = lambda: made.now
    return made


@pytest.mark.parametrize(
    ("function", "ready"),
    [
        ({}, False),
        ({"queued": 0}, True),
        ({"busy": 1}, True),
        ({"starting": 1}, True),
        ({"held_s": 500.0}, True),
    ],
)
def test_ready_means_progress(function: dict[str, Any], ready: bool) -> None:
    made = plane(**function)
    health = Health(made)
    assert health.trouble() == ""  # it has only just begun
    made.now += STUCK_S + 1
    assert (health.trouble() == "") is ready
    for moved in made.observers.values():
        moved(None)
    assert health.trouble() == ""


def test_not_ready_when_the_disk_is_stuck_or_full_or_the_end_is_near() -> None:
    made = plane(queued=0)
    health = Health(made)
    made.journal.flushing_since_s = 1000.0 - STUCK_S - 1
    assert "disk" in health.trouble()
    made.journal.flushing_since_s, made.journal.full = 0.0, "The log cannot be written."
    assert health.trouble() == made.journal.full
    made.journal.full, health.draining = "", True
    assert "shutting down" in health.trouble()


def test_the_port_is_named_when_it_is_taken() -> None:
    from nubes.gateway.server import bind
    from nubes.kernel.errors import NubesError

    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    with (
        taken,
        pytest.raises(NubesError, match=rf"Port {taken.getsockname()[1]} .* is in use\. Choose another with --port"),
    ):
        bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(NubesError, match=r"no address of this machine|cannot be listened on"):
        bind("203.0.113.7", 0)
