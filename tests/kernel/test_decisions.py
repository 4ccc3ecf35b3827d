"""A watched policy decides as before, and every decision can be asked again."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from nubes.functions.seams import FOREVER, FunctionView, InstanceView, KeepAlive, NodeView, Window
from nubes.functions.spec import FunctionSpec
from nubes.kernel.decisions import Decision, Watched, freeze


class Growing(KeepAlive):
    """Keeps a second longer each time: its state matters."""

    name = "growing"

    def __init__(self) -> None:
        self.asked = 0

    def window(self, f: FunctionView, now: float) -> Window:
        self.asked += 1
        return Window(0.0, float(self.asked + f.busy))

    def scores(self, question: str, f: FunctionView, now: float) -> list[tuple[str, float]]:
        return [("forever", float(self.asked))]


def watched(policy: KeepAlive) -> tuple[Any, list[Decision]]:
    found: list[Decision] = []
    return Watched(policy, found.append), found


@pytest.fixture
def f() -> FunctionView:
    return FunctionView("a/f", FunctionSpec(name="a/f"))


def test_a_decision_is_kept_with_its_view(f: FunctionView) -> None:
    policy, found = watched(Growing())
    f.busy = 3
    assert policy.window(f, 12.5) == Window(0.0, 4.0)
    (decision,) = found
    assert (decision.at, decision.seam, decision.policy, decision.question) == (12.5, "keep-alive", "growing", "window")
    assert decision.choice == Window(0.0, 4.0)
    assert decision.scores == [("forever", 0.0)]
    view, now = decision.view()
    assert (view.name, view.busy, now) == ("a/f", 3, 12.5)


def test_the_stored_view_gives_the_same_decision_whatever_happened_since(f: FunctionView) -> None:
    policy, found = watched(Growing())
    choices = []
    for busy in range(5):
        f.busy = busy
        choices.append(policy.window(f, float(busy)))
    f.busy = 99
    assert [decision.again() for decision in found] == choices == [decision.choice for decision in found]
    assert [decision.again() for decision in pickle.loads(pickle.dumps(found))] == choices


def test_decisions_that_a_policy_inherits_are_watched_too(f: FunctionView) -> None:
    policy, found = watched(KeepAlive())
    assert policy.window(f, 1.0) is FOREVER
    instance = InstanceView(7, f, 3.0)
    assert policy.priority(instance, 5) == 3.0
    assert [(d.question, d.at, d.scores) for d in found] == [("window", 1.0, []), ("priority", 5.0, [])]
    assert found[1].view()[0].function.name == "a/f"


def test_everything_else_passes_through(f: FunctionView) -> None:
    inner = Growing()
    policy, found = watched(inner)
    policy.arrived(f, 1.0)
    assert policy.asked == 0
    assert policy.seam == "keep-alive"
    assert found == []
    with pytest.raises(AttributeError):
        policy.nothing_of_the_kind  # noqa: B018


def test_frozen_views_do_not_change(f: FunctionView) -> None:
    node = NodeView(1, 0, "env", frozenset({"numpy"}), "", 0.0)
    frozen = freeze({"nodes": [node], "pair": (f, 1)})
    node.forks, f.busy = 5, 5
    assert frozen["nodes"][0].forks == 0
    assert frozen["pair"][0].busy == 0
