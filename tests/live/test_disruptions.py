"""Deployments that leave as many instances as a function needs, on real processes."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import rolling_app as app
from real import status, until

from nubes.kernel.errors import UsageError

SLOW_STATES = ("ray",)


@pytest.fixture(scope="module", autouse=True)
def running(plane: Path) -> None:
    app.app.deploy()
    until(lambda: len(up("where")) == len(up("Store")) == 2)


def there(function: str) -> list[dict[str, Any]]:
    return [i for i in status()["instances"] if i["function"] == f"rolling/{function}"]


def up(function: str) -> set[int]:
    return {i["id"] for i in there(function) if i["state"] != "starting"}


def seen_until_replaced(function: str) -> list[set[int]]:
    """Deploys, and which instances were up, looked at again and again, until all are others."""
    until(lambda: len(there(function)) == len(up(function)) == 2)  # no earlier deployment goes on
    before, seen = up(function), []
    threading.Timer(0.1, app.app.deploy).start()

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
        seen = seen_until_replaced("where")
    finally:
        over.set()
        caller.join()
    assert min(map(len, seen)) >= 2
    assert answers[0] != app.where.remote()  # who answers now is of the new version


def test_an_application_is_asked_and_decides() -> None:
    seen = seen_until_replaced("Store")
    assert min(map(len, seen)) >= 1  # one at a time
    assert {f["disruption"] for f in status()["functions"]} == {"quorum(up=2)", "app"}


def test_what_would_never_let_go_is_an_error_before_anything_changes() -> None:
    import nubes

    wrong = nubes.App("rolling")

    @wrong.function(name="where", min_instances=1, disruption="quorum(up=3)")
    def where() -> int:
        return 0

    until(lambda: len(there("where")) == len(up("where")) == 2)
    before = up("where")
    with pytest.raises(UsageError, match="of 2 instances it lets none go"):
        wrong.deploy()
    assert up("where") == before
