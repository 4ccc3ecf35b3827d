"""`nubes replay --llm` and `nubes plan llm`."""

from __future__ import annotations

import json
from pathlib import Path

from cli.command_line import Nubes

CHAT = "chat-like(rate=2,length=20s,limit=2048)"
MODEL = "opt(opt-13b,tp=1)"


def test_policies_are_compared(nubes: Nubes, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    words = ("replay", CHAT, "--llm", MODEL, "--batching", "sarathi(budget=256),vllm", "--slo", "ttft=1s,tpot=60ms")
    shown = nubes(*words, "--html", str(page))
    assert shown.returncode == 0, shown.stderr
    assert "sarathi(budget=256)" in shown.stdout
    assert "goodput" in shown.stdout
    assert "Time per output token" in page.read_text()
    data = json.loads(nubes(*words, "--instances", "1,2", "--json").stdout)
    assert [row["configuration"]["instances"] for row in data["rows"]] == [1, 2, 1, 2]
    assert data["slo"]["ttft_s"] == 1.0


def test_a_rate_and_a_part_of_a_trace(nubes: Nubes) -> None:
    done = nubes("replay", CHAT, "--llm", MODEL, "--rate", "4", "--until", "5s", "--json")
    data = json.loads(done.stdout)
    assert 10 <= data["requests"] <= 40
    assert "at 4 a second" in data["source"]


def test_options_of_functions_and_of_llms_are_not_mixed(nubes: Nubes) -> None:
    mixed = nubes("replay", CHAT, "--llm", MODEL, "--keep-alive", "lru")
    assert mixed.returncode == 2
    assert "--keep-alive is for replays of functions" in mixed.stderr
    lone = nubes("replay", "azure-like", "--slo", "ttft=1s")
    assert lone.returncode == 2
    assert "Name a step model with --llm" in lone.stderr


def test_a_plan_names_the_cheapest(nubes: Nubes, tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    words = (
        "plan", "llm", "--trace", CHAT, "--model", "opt-13b", "--gpus", "a100,a10", "--tensor", "1", "--pipeline", "1",
        "--batching", "vllm", "--slo", "ttft=2s,tpot=100ms", "--prices", "a100=2",
    )  # fmt: skip
    done = nubes(*words, "--html", str(page))
    assert done.returncode == 0, done.stderr
    assert "x a100 tp=1 pp=1 vllm: $" in done.stdout
    assert "does not fit" in done.stdout
    assert "What more dollars bring" in page.read_text()
    (plan,) = json.loads(nubes(*words, "--json").stdout)
    assert plan["met"][0]["hourly"] == 2.0 * plan["met"][0]["replicas"]
    none = nubes(*words[:-4], "--slo", "tpot=1ms")
    assert none.returncode == 1
    assert "even an idle one" in none.stdout
