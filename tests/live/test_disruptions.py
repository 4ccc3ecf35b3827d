"""Deployments that leave as many instances as a function needs, on real processes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import rolling_app as app
from real import status, until

from nubes.kernel.errors import UsageError

SLOW_STATES = ("ray",)


@pytest.fixture(scope="module", autouse=True)
def running(plane: Path) -> None:
    app.app.deploy()
    until(lambda: len(up("where")) == len(up("Store")) == 2)


def up(function: str) -> set[int]:
    return {
        i["id"] for i in status()["instances"] if i["function"] == f"rolling/{function}" and i["state"] != "starting"
    }


def seen_until_replaced(function: str) -> list[set[int]]:
    """Which instances were up, looked at again and again, until all are others."""
    before, seen = up(function), []

    def replaced() -> bool:
        seen.append(up(function))
        return len(seen[-1]) == 2 and not seen[-1] & before

    until(replaced)
    return seen


def test_a_function_never_has_fewer_than_it_needs() -> None:
    answers: list[int] = []
    over = threading.Event()

    def call() -> None:
        while not over.is_set():
            answers.append(app.where.remote())

    caller = threading.Thread(target=call)
    caller.start()
    try:
        threading.Timer(0.1, app.app.deploy).start()
        seen = seen_until_replaced("where")
    finally:
        over.set()
        caller.join()
    assert min(map(len, seen)) >= 2
    assert len(set(answers)) >= 2


def test_an_application_is_asked_and_decides() -> None:
    threading.Timer(0.1, app.app.deploy).start()
    seen = seen_until_replaced("Store")
    assert min(map(len, seen)) >= 1  # one at a time
    assert {f["disruption"] for f in status()["functions"]} == {"quorum(up=2)", "app"}


def test_what_would_never_let_go_is_an_error_before_anything_changes() -> None:
    import nubes

    wrong = nubes.App("rolling")

    @wrong.function(name="where", min_instances=1, disruption="quorum(up=3)")
    def where() -> int:
        return 0

    before = up("where")
    with pytest.raises(UsageError, match="of 2 instances it lets none go"):
        wrong.deploy()
    assert up("where") == before
