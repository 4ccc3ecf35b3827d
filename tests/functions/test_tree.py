"""The process tree: plans become commands, parents come and go, and every start is made in the end."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from nubes.functions.events import GrowNode, NodeReady, PruneNode, StartInstance
from nubes.functions.seams import ColdStart, FunctionView, Grow, KeepAlive, NodeView, Plan
from nubes.functions.spec import FunctionSpec
from nubes.functions.state import Function, Instance, Machine
from nubes.functions.tree import MAX_FAILURES, Tree


class Scripted(ColdStart):
    """Plans whatever it is told to; worth is what `worths` says of a node, 0 if nothing."""

    def __init__(self, plan: Plan) -> None:
        self.next = plan
        self.worths: dict[int, float] = {}

    def plan(self, f: FunctionView, nodes: Mapping[int, NodeView], now: float) -> Plan:
        return self.next

    def worth(self, node: NodeView, now: float) -> float:
        return self.worths.get(node.id, 0.0)


class Forest:
    """A tree, and instances of two functions to start from it."""

    def __init__(self, *grow: Grow, source: int = 0, wait: bool = True, budget: float = inf) -> None:
        self.policy = Scripted(Plan(source, grow, wait))
        self.tree = Tree(self.policy, budget)
        self.machine = Machine(0, inf, inf)
        self.ids = 0

    def function(self, name: str = "f", variant: str = "", environment: str = "") -> Function:
        spec = FunctionSpec(name=f"a/{name}", environment=environment)
        return Function(spec.name + variant, spec, variant, 1, KeepAlive())

    def start(self, name: str = "f", variant: str = "", environment: str = "") -> tuple[Instance, list[Any]]:
        self.ids += 1
        out: list[Any] = []
        instance = Instance(self.ids, self.function(name, variant, environment), self.machine, 1.0)
        self.tree.start(instance, 1.0, out)
        return instance, out

    def ready(self, node: int, memory_bytes: int = 1) -> list[Any]:
        out: list[Any] = []
        self.tree.ready(NodeReady(node, 0.5, memory_bytes), 2.0, out)
        return out

    def lost(self, node: int) -> list[Any]:
        out: list[Any] = []
        self.tree.lost(node, 3.0, out)
        return out

    def drop(self, function: str) -> list[Any]:
        out: list[Any] = []
        self.tree.drop(function, 4.0, out)
        return out


NUMPY, CAPTURE = Grow(("numpy",)), Grow((), "a/f")


def test_a_fresh_interpreter_needs_no_parent() -> None:
    _, out = Forest().start(variant="(1)")
    assert out == [StartInstance(1, "a/f(1)", "(1)", 0)]


def test_a_start_waits_for_the_last_parent_of_its_plan() -> None:
    forest = Forest(NUMPY, CAPTURE)
    first, out = forest.start()
    assert out == [GrowNode(1, 0, "", ("numpy",)), GrowNode(2, 1, "", (), "a/f")]
    assert forest.tree.where[2].imports == {"numpy"}
    second, out = forest.start()
    assert out == []  # the same parents serve both
    assert forest.ready(1) == []
    assert forest.ready(2) == [StartInstance(1, "a/f", "", 2), StartInstance(2, "a/f", "", 2)]
    assert (first.node, second.node, forest.tree.where[2].forks, forest.tree.where[1].children) == (2, 2, 2, 1)
    assert forest.tree.where[2].last_used_s == 2.0
    _, out = forest.start()
    assert out == [StartInstance(3, "a/f", "", 2)]


def test_a_plan_that_does_not_wait_starts_at_once_and_grows_for_later() -> None:
    forest = Forest(CAPTURE, wait=False)
    _, out = forest.start()
    assert out == [GrowNode(1, 0, "", (), "a/f"), StartInstance(1, "a/f", "", 0)]


def test_environments_have_trees_of_their_own() -> None:
    forest = Forest(NUMPY)
    forest.start()
    _, out = forest.start(environment="image")
    assert out == [GrowNode(2, 0, "image", ("numpy",))]


def test_an_instance_that_was_stopped_meanwhile_is_not_started() -> None:
    forest = Forest(NUMPY)
    instance, _ = forest.start()
    instance.stopping = True
    assert forest.ready(1) == []
    forest.tree.waiting[1] = [instance]
    assert forest.lost(1) == []


def test_a_lost_parent_takes_its_children_along_and_starts_are_planned_anew() -> None:
    forest = Forest(NUMPY, CAPTURE)
    forest.start()
    out = forest.lost(1)
    assert out == [PruneNode(2, "its parent is gone"), GrowNode(3, 0, "", ("numpy",)), GrowNode(4, 3, "", (), "a/f")]
    assert set(forest.tree.where) == {3, 4}
    forest.ready(3)
    assert forest.ready(4) == [StartInstance(1, "a/f", "", 4)]
    assert forest.tree.failures == {}
    assert forest.lost(99) == []


def test_a_lost_child_leaves_its_parent() -> None:
    forest = Forest(NUMPY, CAPTURE)
    forest.start()
    forest.policy.next = Plan(0)
    assert forest.lost(2) == [StartInstance(1, "a/f", "", 0)]
    assert forest.tree.where[1].children == 0


def test_parents_that_never_grow_are_done_without() -> None:
    forest = Forest(CAPTURE)
    forest.start(variant="(1)")
    for _ in range(MAX_FAILURES - 1):
        (grow,) = forest.lost(max(forest.tree.where))
        assert isinstance(grow, GrowNode)
    assert forest.lost(max(forest.tree.where)) == [StartInstance(1, "a/f(1)", "(1)", 0)]
    assert forest.start(variant="(2)")[1] == [StartInstance(2, "a/f(2)", "(2)", 0)]
    forest.drop("a/f")  # a new version may do better
    assert isinstance(forest.start()[1][0], GrowNode)


def test_a_replaced_function_loses_its_parents_only() -> None:
    forest = Forest(NUMPY, CAPTURE)
    forest.start()
    forest.policy.next = Plan(0, (NUMPY, CAPTURE, Grow(("torch",))))
    forest.start("g")
    forest.policy.next = Plan(1)
    assert forest.drop("a/f") == [
        PruneNode(2, "its function was replaced"),
        PruneNode(3, "its parent is gone"),
        StartInstance(1, "a/f", "", 1),
        StartInstance(2, "a/g", "", 1),
    ]
    assert set(forest.tree.where) == {1}
    assert forest.tree.failures == {}


def test_only_eager_policies_prepare() -> None:
    forest = Forest(NUMPY)
    out: list[Any] = []
    forest.policy.eager = False  # type: ignore[misc]
    forest.tree.prepare(forest.function(), 0.0, out)
    assert out == []
    forest.policy.eager = True  # type: ignore[misc]
    forest.tree.prepare(forest.function(), 0.0, out)
    assert out == [GrowNode(1, 0, "", ("numpy",))]


def test_over_its_budget_the_tree_loses_the_leaves_worth_least() -> None:
    forest = Forest(NUMPY, budget=10)
    forest.start()
    for id, name in ((2, "torch"), (3, "scipy"), (4, "jax")):
        forest.policy.next = Plan(1, (Grow((name,)),))
        forest.start()
        forest.policy.worths[id] = float(10 - id)
    forest.ready(1, 4)
    forest.ready(2, 3)
    assert PruneNode not in [type(c) for c in forest.ready(3, 3)]
    out = forest.ready(4, 3)
    assert out == [StartInstance(4, "a/f", "", 4), PruneNode(4, "the tree is over its budget")]
    assert set(forest.tree.where) == {1, 2, 3}
    assert forest.tree.where[1].children == 2
    forest.tree.budgets[0] = 5
    forest.policy.worths.update({1: inf, 2: 1.0, 3: 2.0})
    out = []
    forest.tree.trim(0, 5.0, out)
    assert [c.node for c in out] == [2, 3]
    forest.tree.budgets[0] = 0
    forest.tree.trim(0, 5.0, out)
    assert set(forest.tree.where) == {1}  # of infinite worth


def test_a_parent_that_somebody_waits_for_is_not_pruned() -> None:
    forest = Forest(NUMPY, CAPTURE, budget=1)
    forest.start()
    assert forest.ready(1, 5) == []
    assert set(forest.tree.where) == {1, 2}


def test_no_function_starts_from_the_parent_of_another() -> None:
    forest = Forest(Grow(("numpy",), "a/f"))
    forest.start("f")
    forest.ready(1)
    forest.policy.next = Plan(1)
    assert forest.start("f")[1] == [StartInstance(2, "a/f", "", 1)]
    assert forest.start("g")[1] == [StartInstance(3, "a/g", "", 0)]
    forest.policy.next = Plan(1, (Grow((), "a/g"),))
    grown = forest.start("g")[1]
    assert [(one.parent, one.function) for one in grown if isinstance(one, GrowNode)] == [(0, "a/g")]
