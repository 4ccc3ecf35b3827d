"""The process tree: libraries work in forked children, nobody sees what he did not ask for, and every policy runs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tree_app as app
from real import APPS, started, status

SLOW_STATES = ("ray",)

POLICIES = ["catalyzer", "seuss", "sock", "sand", "zygote", "flat-zygote", "fresh"]
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")


def fresh(what: str) -> dict[str, Any]:
    """The same work in a process that was not forked."""
    done = subprocess.run([sys.executable, str(APPS / "tree_app.py"), what], capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_runs_the_same_app(policy: str, tmp_path: Path) -> None:
    with started(tmp_path, {"NUBES_COLD_START": policy}), app.app.run():
        assert status()["policies"]["cold-start"] == policy
        for _ in range(2):  # cold, and then from whatever has grown
            assert app.plain.remote()[0] == []
            assert app.with_numpy.remote() == ["numpy"]
            assert app.with_scipy.remote() == ["numpy", "scipy"]
        draws = [app.draw.remote() for _ in range(3)]
        for position in range(4):
            assert len({draw[position] for draw in draws}) == 3, "two forks drew the same random numbers"
        parents = status()["parents"]
        assert bool(parents) == (policy != "fresh")
        if policy in ("catalyzer", "sock"):  # they keep packages apart from functions
            assert any("numpy" in parent["imports"] for parent in parents)
        if policy in ("catalyzer", "seuss", "sand", "flat-zygote"):
            assert {parent["function"] for parent in parents} >= {"tree/plain", "tree/with_numpy"}


@pytest.mark.parametrize("policy", ["sock", "seuss"])
def test_numpy_and_scipy_work_at_full_speed_in_a_fork(policy: str, tmp_path: Path) -> None:
    expected = fresh("numpy")
    with started(tmp_path, {"NUBES_COLD_START": policy}), app.app.run():
        results = [app.threads_and_product.remote() for _ in range(2)]
        forked_from = [p for p in status()["parents"] if "scipy.linalg" in p["imports"] or p["function"]]
        assert forked_from
    for result in results:
        assert result["product"] == expected["product"]
        assert result["solved"] == pytest.approx(expected["solved"], rel=1e-9)
        assert result["threads"] >= expected["threads"]


@needs_torch
@pytest.mark.parametrize("policy", ["catalyzer"])
def test_torch_works_at_full_speed_in_a_fork(policy: str, tmp_path: Path) -> None:
    expected = fresh("torch")
    with started(tmp_path, {"NUBES_COLD_START": policy}), app.app.run():
        results = [app.threads_and_product_torch.remote() for _ in range(2)]
        assert any("torch" in parent["imports"] for parent in status()["parents"])
        assert app.draw_torch.remote() != app.draw_torch.remote()
    for result in results:
        assert result["product"] == expected["product"]
        assert result["sum"] == pytest.approx(expected["sum"])
        assert result["intra"] == expected["intra"]
        assert result["threads"] >= expected["intra"]
