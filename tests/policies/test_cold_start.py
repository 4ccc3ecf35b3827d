"""The process-tree policies: plans by hand, and invariants over whole runs."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cloud import Cloud

from nubes.functions import events as e
from nubes.functions.policies.catalyzer import Catalyzer
from nubes.functions.policies.fresh import FlatZygote, Fresh, Zygote
from nubes.functions.policies.sand import Sand
from nubes.functions.policies.seuss import Seuss
from nubes.functions.policies.sock import Sock
from nubes.functions.seams import ColdStart, FunctionView, Grow, NodeView, Plan
from nubes.functions.spec import Code, FunctionSpec
from nubes.kernel.errors import UsageError
from nubes.kernel.policy import make

POLICIES = ["fresh", "zygote", "flat-zygote", "seuss", "sand", "catalyzer", "sock", "sock(evict=lru)"]


def spec(name: str, *imports: str) -> FunctionSpec:
    return FunctionSpec(name=name, cpu=0.0, memory_bytes=1 << 16, code=Code(imports=imports))


def view(name: str, *imports: str) -> FunctionView:
    return FunctionView(name, spec(name, *imports))


def tree(*nodes: tuple[int, int, str, str]) -> dict[int, NodeView]:
    """Ready nodes from (id, parent, imports, function); a negative id is one that still grows."""
    made = {}
    for id, parent, imports, function in nodes:
        node = NodeView(abs(id), parent, "", frozenset(imports.split()), function, 0.0)
        node.ready, node.grow_s, node.memory_bytes = id > 0, 1.0, 1000
        made[node.id] = node
    return made


ROOT = (1, 0, "", "")


class TestBaselines:
    def test_fresh_never_grows(self) -> None:
        assert Fresh().plan(view("f", "numpy"), tree(ROOT), 0.0) == Plan(0)

    def test_zygote_has_one_bare_parent(self) -> None:
        assert Zygote().plan(view("f", "numpy"), {}, 0.0) == Plan(0, (Grow(),))
        assert Zygote().plan(view("f", "numpy"), tree((-1, 0, "", "")), 0.0) == Plan(0, (Grow(),))
        assert Zygote().plan(view("f", "numpy"), tree(ROOT), 0.0) == Plan(1)

    def test_flat_zygotes_share_nothing(self) -> None:
        nodes = tree((1, 0, "numpy", "f"))
        assert FlatZygote().plan(view("f", "numpy"), nodes, 0.0) == Plan(1)
        assert FlatZygote().plan(view("g", "numpy"), nodes, 0.0) == Plan(0, (Grow(("numpy",), "g"),))


class TestSeuss:
    @pytest.mark.parametrize("policy", [Seuss, Sand])
    def test_takes_the_deepest_that_is_there(self, policy: type[Seuss]) -> None:
        f, capture = view("f", "numpy"), Grow(("numpy",), "f")
        assert policy().plan(f, {}, 0.0) == Plan(0, (Grow(), capture))
        assert policy().plan(f, tree((-1, 0, "", "")), 0.0) == Plan(
            0, (Grow(), capture)
        )  # the runtime node still grows
        assert policy().plan(f, tree(ROOT), 0.0) == Plan(1, (capture,))
        assert policy().plan(f, tree(ROOT, (-2, 1, "numpy", "f")), 0.0) == Plan(1, (capture,))
        assert policy().plan(f, tree(ROOT, (2, 1, "numpy", "f")), 0.0) == Plan(2)

    def test_finds_its_node_again_and_notices_when_it_is_gone(self) -> None:
        policy = Seuss()
        f = view("f")
        assert policy.plan(f, tree(ROOT, (2, 1, "", "f")), 0.0) == Plan(2)
        assert policy.plan(f, tree(ROOT, (2, 1, "", "g")), 0.0) == Plan(1, (Grow((), "f"),))
        assert policy.plan(f, tree(ROOT, (9, 1, "", "f")), 0.0) == Plan(9)

    def test_functions_go_least_recently_used_first_and_the_runtime_never(self) -> None:
        nodes = tree(ROOT, (2, 1, "", "f"))
        nodes[2].last_used_s = 5.0
        assert Seuss().worth(nodes[2], 9.0) == 5.0
        assert Seuss().worth(nodes[1], 9.0) == inf

    def test_primes_and_sand_does_not(self) -> None:
        assert (Seuss.prime, Sand.prime) == (True, False)

    def test_scores_are_the_seconds_each_path_saves(self) -> None:
        scores = Seuss().scores("plan", view("f"), tree(ROOT, (2, 1, "", "f")), 0.0)
        assert scores == [("warm", 2.0), ("cold", 1.0), ("fresh", 0.0)]

    def test_the_first_start_waits_for_its_node_and_later_ones_fork_it(self) -> None:
        cloud = Cloud([spec("f", "numpy")], cold_start="seuss", keep_alive="sand", cold_s=0.01, grow_s=0.5)
        cloud.call("f", 0.1, 5.0)
        cloud.run()
        starts = [(at, c.node) for at, c in cloud.log if isinstance(c, e.StartInstance)]
        assert starts == [(0.5, 2), (5.0, 2)]


class TestCatalyzer:
    def test_fork_else_warm_else_cold(self) -> None:
        f, template = view("f", "numpy"), Grow((), "f")
        assert Catalyzer().plan(f, {}, 0.0) == Plan(0, (Grow(("numpy",)), template), wait=False)
        assert Catalyzer().plan(f, tree((1, 0, "numpy", "")), 0.0) == Plan(1, (template,), wait=False)
        assert Catalyzer().plan(f, tree((1, 0, "numpy", ""), (2, 1, "numpy", "f")), 0.0) == Plan(2)

    def test_what_still_grows_is_not_there(self) -> None:
        f = view("f", "numpy")
        assert Catalyzer().plan(f, tree((1, 0, "numpy", ""), (-2, 1, "numpy", "f")), 0.0).source == 1
        assert Catalyzer().plan(f, tree((-1, 0, "numpy", "")), 0.0).source == 0

    def test_a_zygote_with_other_imports_does_not_do(self) -> None:
        assert Catalyzer().plan(view("f", "numpy"), tree((1, 0, "numpy scipy", "")), 0.0).source == 0
        assert Catalyzer().plan(view("f", "numpy"), tree((1, 0, "", "")), 0.0).source == 0

    def test_worth_is_start_rate_times_saved_time_over_bytes(self) -> None:
        policy = Catalyzer(recent="10m")
        nodes = tree((1, 0, "", ""), (2, 1, "", "hot"), (3, 1, "", "rare"))
        for _ in range(4):
            policy.plan(view("hot"), nodes, 0.0)
        policy.plan(view("rare"), nodes, 0.0)
        assert policy.worth(nodes[2], 0.0) == 4 * 1.0 / 1000
        assert policy.worth(nodes[3], 0.0) == 1 * 1.0 / 1000
        assert policy.worth(nodes[1], 0.0) == 5 * 1.0 / 1000  # all of them would miss their zygote
        assert policy.worth(nodes[2], 600.0) == pytest.approx(4 / 1000 / 2.718281828)
        nodes[3].memory_bytes = 100
        assert policy.worth(nodes[3], 0.0) > policy.worth(nodes[2], 0.0)

    def test_what_nobody_starts_from_any_more_goes_first(self) -> None:
        policy = Catalyzer()
        nodes = tree((1, 0, "", ""), (2, 1, "", "was"), (3, 1, "", "is"))
        for _ in range(50):
            policy.plan(view("was"), nodes, 0.0)
        policy.plan(view("is"), nodes, 3600.0)
        assert policy.worth(nodes[2], 3600.0) < policy.worth(nodes[3], 3600.0)

    def test_scores_are_the_seconds_each_boot_saves(self) -> None:
        nodes = tree((1, 0, "numpy", ""), (2, 1, "numpy", "f"))
        assert Catalyzer().scores("plan", view("f", "numpy"), nodes, 0.0) == [
            ("fork boot", 2.0), ("warm boot", 1.0), ("cold boot", 0.0),
        ]  # fmt: skip

    def test_boots_in_a_run(self) -> None:
        cloud = Cloud([spec("f", "numpy")], cold_start="catalyzer", keep_alive="sand", cold_s=0.01, grow_s=0.5)
        cloud.call("f", 0.1, 0.6, 5.0)
        cloud.run()
        nodes = [c.node for _, c in cloud.log if isinstance(c, e.StartInstance)]
        assert nodes == [0, 2, 2]  # both parents were ready at 0.5: 1 is the zygote, 2 the template


class TestSock:
    def test_the_packages_most_functions_ask_for_come_first(self) -> None:
        policy = Sock()
        for name in ("f", "g"):
            policy.plan(view(name, "scipy", "pandas"), {}, 0.0)
        plan = policy.plan(view("h", "aaa", "scipy"), {}, 0.0)
        assert plan == Plan(0, (Grow(), Grow(("scipy",)), Grow(("aaa",))), wait=False)

    def test_takes_the_deepest_node_that_holds_nothing_else(self) -> None:
        nodes = tree(
            ROOT,
            (2, 1, "numpy", ""),
            (3, 2, "numpy scipy", ""),
            (4, 2, "numpy pandas", ""),
            (5, 4, "numpy pandas six", ""),
        )
        policy = Sock()
        assert policy.plan(view("a", "numpy", "scipy"), nodes, 0.0) == Plan(3, (), wait=False)
        assert policy.plan(view("b", "numpy", "pandas", "pillow"), nodes, 0.0) == Plan(
            4, (Grow(("pillow",)),), wait=False
        )
        assert policy.plan(view("c", "scipy"), nodes, 0.0) == Plan(1, (Grow(("scipy",)),), wait=False)
        assert policy.plan(view("d"), nodes, 0.0) == Plan(1, (), wait=False)

    def test_what_still_grows_is_passed_over(self) -> None:
        nodes = tree(ROOT, (2, 1, "numpy", ""), (-3, 2, "numpy scipy", ""))
        assert Sock().plan(view("a", "numpy", "scipy"), nodes, 0.0) == Plan(2, (Grow(("scipy",)),), wait=False)

    def test_a_new_version_that_asks_for_less_counts_for_less(self) -> None:
        policy = Sock()
        policy.plan(view("f", "a", "b"), {}, 0.0)
        policy.plan(view("f", "b"), {}, 0.0)
        assert policy.asked == {"a": 0, "b": 1}

    def test_leaves_go_by_benefit_over_cost(self) -> None:
        nodes = tree(ROOT, (2, 1, "numpy", ""), (3, 1, "six", ""))
        nodes[2].forks, nodes[2].grow_s, nodes[2].memory_bytes = 3, 2.0, 600
        nodes[3].forks, nodes[3].grow_s, nodes[3].memory_bytes, nodes[3].last_used_s = 20, 0.1, 100, 7.0
        assert Sock().worth(nodes[2], 9.0) == 0.01
        assert Sock().worth(nodes[3], 9.0) == 0.02
        assert Sock(evict="lru").worth(nodes[3], 9.0) == 7.0
        assert Sock().worth(nodes[1], 9.0) == Sock(evict="lru").worth(nodes[1], 9.0) == inf
        with pytest.raises(UsageError):
            Sock(evict="random")

    def test_scores_are_the_packages_each_usable_node_holds(self) -> None:
        nodes = tree(ROOT, (2, 1, "numpy", ""), (3, 1, "six", ""))
        assert Sock().scores("plan", view("f", "numpy"), nodes, 0.0) == [("node 2", 1.0), ("node 1", 0.0)]

    def test_a_start_does_not_wait_and_the_next_forks_deeper(self) -> None:
        cloud = Cloud([spec("f", "numpy", "scipy")], cold_start="sock", keep_alive="sand", cold_s=0.01, grow_s=0.5)
        cloud.call("f", 0.1, 5.0)
        cloud.run()
        starts = [(at, c.node) for at, c in cloud.log if isinstance(c, e.StartInstance)]
        assert starts == [(0.1, 0), (5.0, 3)]
        grown = [c for _, c in cloud.log if isinstance(c, e.GrowNode)]
        assert [(g.node, g.parent, g.imports) for g in grown] == [(1, 0, ()), (2, 1, ("numpy",)), (3, 2, ("scipy",))]


PACKAGES = ["numpy", "pandas", "pillow", "scipy", "six"]
functions = st.lists(st.sets(st.sampled_from(PACKAGES)), min_size=1, max_size=6)
calls = st.lists(st.tuples(st.integers(0, 5), st.floats(0, 30)), max_size=40)


@settings(max_examples=25, deadline=None)
@given(functions, calls, st.sampled_from(POLICIES), st.integers(1, 12))
def test_holds_over_whole_runs(sets: list[set[str]], when: list[tuple[int, float]], policy: str, budget: int) -> None:
    """Nobody is forked from a parent with a package or a function it did not ask for, nor from one that is not ready.

    What is worth `inf` is never pruned for memory.
    """
    specs = [spec(f"f{n}", *sorted(imports)) for n, imports in enumerate(sets)]
    cloud = Cloud(
        specs,
        cold_start=policy,
        keep_alive="sand",
        cold_s=0.05,
        grow_s=0.5,
        memory_bytes=budget << 22,
        node_bytes=1 << 20,
    )  # the tree may have a quarter of memory: `budget` parents
    tree = cloud.controller.tree
    seen = dict(tree.where)
    for n, at in when:
        cloud.call(f"f{n % len(specs)}", at)
    checked = 0
    wanted = {s.name: frozenset(s.code.imports) for s in specs}
    while cloud.heap:
        cloud.run(cloud.heap[0][0])
        seen.update(tree.where)
        for _, command in cloud.log[checked:]:
            match command:
                case e.StartInstance(node=source) if source:
                    node = seen[source]
                    assert node.ready
                    assert node.imports <= wanted[command.function]
                    assert node.function in ("", command.function)
                case e.PruneNode(node=id):
                    assert tree.policy.worth(seen[id], cloud.now) < inf
        checked = len(cloud.log)
    assert len(cloud.dispatched()) == len(when)
    assert not cloud.controller.calls


@settings(max_examples=50, deadline=None)
@given(functions, st.sampled_from(POLICIES), st.data())
def test_plans_name_ready_sources_only(sets: list[set[str]], name: str, data: st.DataObject) -> None:
    """From any tree whatever, with any of it still growing."""
    policy: ColdStart = make("cold-start", name)
    nodes: dict[int, NodeView] = {}
    for id in range(1, data.draw(st.integers(0, 8)) + 1):
        parent = data.draw(st.sampled_from([0, *nodes]))
        imports = frozenset(data.draw(st.sets(st.sampled_from(PACKAGES), max_size=2)))
        function = data.draw(st.sampled_from(["", "f0", "f1"]))
        nodes[id] = NodeView(
            id, parent, "", imports | (nodes[parent].imports if parent else frozenset()), function, 0.0
        )
        nodes[id].ready = data.draw(st.booleans())
    for n, imports in enumerate(sets):
        f = view(f"f{n}", *sorted(imports))
        plan = policy.plan(f, nodes, 0.0)
        assert plan.source == 0 or nodes[plan.source].ready
        assert policy.plan(f, nodes, 0.0) == plan  # asking twice changes nothing
