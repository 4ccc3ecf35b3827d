"""What each placement policy promises."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nubes.data.tasks.policies.ray import BottomUp, wait_s
from nubes.data.tasks.seams import GLOBAL, LOCAL, NodeView, TaskRequest
from nubes.kernel.policy import make

NAMES = ("bottom-up", "central", "random", "locality-blind")


@st.composite
def situations(draw: st.DrawFn) -> tuple[TaskRequest, dict[int, NodeView]]:
    nodes = {}
    for id in range(1, draw(st.integers(0, 5)) + 1):
        node = nodes[id] = NodeView(id, {"gpu": draw(st.sampled_from([0.0, 1.0]))}, draw(st.integers(1, 4)))
        node.backlog, node.queued = draw(st.integers(0, 40)), draw(st.integers(0, 40))
        node.task_s = draw(st.floats(0.0, 10.0))
        node.bandwidth = draw(st.floats(1e6, 1e9))
    needs = draw(st.sampled_from([(), (("gpu", 1.0),)]))
    near = {id: draw(st.integers(0, 10**8)) for id in nodes}
    return TaskRequest("f", draw(st.integers(0, 5)), needs, max(near.values(), default=0), near), nodes


@given(situations())
def test_a_task_goes_where_it_fits_if_it_fits_anywhere(situation: tuple[TaskRequest, dict[int, NodeView]]) -> None:
    request, nodes = situation
    fitting = {node.id for node in nodes.values() if node.fits(request)}
    for name in NAMES:
        choice = make("task-placement", name).place(request, nodes, 0.0)
        assert (choice is None) == (not fitting)
        assert choice is None or choice.node in fitting
        assert choice is None or choice.scheduler == GLOBAL or (choice.node == request.origin and name != "central")


@given(situations())
def test_bottom_up_leaves_its_node_only_for_a_reason(situation: tuple[TaskRequest, dict[int, NodeView]]) -> None:
    request, nodes = situation
    policy = BottomUp(threshold=16, fetch_bytes=1 << 20)
    choice, home = policy.place(request, nodes, 0.0), nodes.get(request.origin)
    if choice is None:
        return
    overloaded = home is None or home.load >= 16 * home.cpus
    lacking = home is None or not home.fits(request) or request.missing_bytes(home.id) > 1 << 20
    assert (choice.scheduler == LOCAL) == (not overloaded and not lacking)
    if choice.scheduler == GLOBAL:
        best = min(wait_s(request, node) for node in nodes.values() if node.fits(request))
        assert wait_s(request, nodes[choice.node]) == best


def test_the_estimate_by_hand() -> None:
    busy, far = NodeView(1, {}, 1), NodeView(2, {}, 1)
    busy.queued, busy.task_s = 10, 0.05  # 0.5 s
    far.bandwidth = 100e6
    request = TaskRequest("f", 0, inputs_bytes=40_000_000, near={1: 40_000_000})  # 0.4 s to the other
    assert wait_s(request, busy) == 0.5
    assert wait_s(request, far) == 0.4
    assert make("task-placement", "central").place(request, {1: busy, 2: far}, 0.0).node == 2
    busy.queued = 7
    assert make("task-placement", "central").place(request, {1: busy, 2: far}, 0.0).node == 1
    assert make("task-placement", "locality-blind").place(request, {1: busy, 2: far}, 0.0).node == 2
