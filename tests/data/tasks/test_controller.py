"""Nodes are lost at any moment, and every result is that of a plain loop."""

from __future__ import annotations

import random
from math import inf

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nubes.data.tasks import events as e
from nubes.data.tasks.controller import Tasks
from nubes.data.tasks.spec import Edge, Task, edges
from tests.data.tasks.world import World, plain_loop

CHAIN = [Task(str(n), "f", (str(n - 1),) if n else ()) for n in range(6)]
DIAMOND = [Task("a", "f"), Task("b", "g", ("a",)), Task("c", "h", ("a",)), Task("d", "f", ("b", "c", "a", "b"))]
ACTOR = [
    Task("x", "Counter", actor="x"),
    Task("i", "f"),
    Task("m1", "add", ("i",), actor="x"),
    Task("m2", "add", ("m1",), actor="x"),
    Task("r", "f", ("m2", "i")),
    Task("m3", "add", ("r",), actor="x"),
    Task("m4", "add", (), actor="x"),
]
GRAPHS = {"chain": CHAIN, "diamond": DIAMOND, "actor": ACTOR}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("every", [0, 1, 2])
@pytest.mark.parametrize("lost", [1, 2])
def test_a_node_lost_at_any_moment(name: str, every: int, lost: int) -> None:
    tasks = GRAPHS[name]
    right = {id: value for id, value in plain_loop(tasks).items() if id != "x"}
    for moment in range(20):
        world = World("random", checkpoint_every=every)
        for task in tasks:
            world.submit(task)
        over = world.run_on(steps=moment) < moment
        world.lose(lost)
        world.join()
        assert {task.id: world.get(task.id) for task in tasks if task.id != "x"} == right
        for task in tasks:
            world.handle(e.Released(task.id))
        world.run_on()
        assert not world.controller.table
        assert not world.controller.actors
        assert not world.kept
        assert not any(world.stores.values())
        if over:
            break
    else:
        raise AssertionError("the graph never came to its end")


@pytest.mark.parametrize("name", GRAPHS)
def test_objects_lost_one_by_one_are_made_again(name: str) -> None:
    tasks = GRAPHS[name]
    right = plain_loop(tasks)
    for task in [task for task in tasks if task.id != "x"]:
        world = World(checkpoint_every=1)
        for one in tasks:
            world.submit(one)
        world.run_on()
        (node,) = world.controller.table[task.id].where
        del world.stores[node][task.id]
        world.handle(e.ObjectLost(task.id, node))
        assert world.get(task.id) == right[task.id]
        assert all(world.get(one.id) == right[one.id] for one in tasks if one.id != "x")


@st.composite
def graphs(draw: st.DrawFn) -> list[Task]:
    tasks: list[Task] = []
    actors: list[str] = []
    for n in range(draw(st.integers(1, 14))):
        values = [t.id for t in tasks if t.id != t.actor]  # the call that makes an actor has no result to speak of
        inputs = tuple(draw(st.lists(st.sampled_from(values), max_size=3)) if values else ())
        which = draw(st.integers(0, 3))
        actor = str(n) if which == 1 else draw(st.sampled_from(actors)) if which == 2 and actors else ""
        if which == 1:
            actors.append(actor)
        tasks.append(Task(str(n), draw(st.sampled_from("fg")), inputs, actor=actor))
    return tasks


def _graph(count: int, inputs: dict[int, str], actors: dict[int, str]) -> list[Task]:
    return [Task(str(n), "f", (inputs[n],) if n in inputs else (), actor=actors.get(n, "")) for n in range(count)]


# methods that wait for a node when their actor goes back to earlier ones; a queue that gets shorter by that
@example(_graph(13, {1: "0", 2: "0", 8: "5", 10: "3"}, {1: "1", 5: "1", 7: "1", 12: "1"}), 0, "bottom-up", 1)
@example(_graph(11, {2: "0", 5: "0", 7: "0"}, {1: "1", 4: "4", 6: "4"}), 267190669, "bottom-up", 0)
@settings(max_examples=200, deadline=None)
@given(
    graphs(),
    st.integers(0, 2**32),
    st.sampled_from(["bottom-up", "bottom-up(threshold=1)", "central", "random", "locality-blind"]),
    st.integers(0, 3),
)
def test_any_graph_under_any_losses(tasks: list[Task], seed: int, placement: str, every: int) -> None:
    """Submitting, running, letting go, losing nodes and objects in any order; a plain loop's results at the end."""
    draw = random.Random(seed)
    right = plain_loop(tasks)
    world = World(placement, draw.randint(1, 3), every, draw.choice([0.5, 3.0, inf]))
    left, held = list(tasks), []
    keep = {task.id for task in tasks if draw.random() < 0.5}
    while left:
        world.run_on(draw, draw.randint(0, 3))
        what = draw.random()
        if what < 0.15 and world.queues:
            world.lose(draw.choice(list(world.queues)))
        elif what < 0.3:
            world.join()
        elif what < 0.4:
            found = [(node, id) for node, store in world.stores.items() for id in store]
            if found:
                node, id = draw.choice(found)
                del world.stores[node][id]
                world.handle(e.ObjectLost(id, node))
        else:
            task = left.pop(0)
            world.submit(task)
            held.append(task.id)
            later = {i for t in left for i in (*t.inputs, t.actor)}
            for id in [id for id in held if id not in keep and id not in later]:
                if draw.random() < 0.7:
                    held.remove(id)
                    world.handle(e.Released(id))
    if not world.queues:
        world.join()
    world.run_on(draw)
    values = [id for id in held if id != world.tasks[id].actor]
    assert {id: world.get(id, draw) for id in values} == {id: right[id] for id in values}
    for id in held:
        world.handle(e.Released(id))
    world.run_on(draw)
    assert not world.controller.table
    assert not world.controller.actors
    assert not world.kept
    assert not any(world.stores.values())


def test_a_long_chain_is_made_again_without_recursion() -> None:
    controller = Tasks()
    controller.handle(e.NodeReady(1), 0.0)
    count = 5_000
    for n in range(count):
        controller.handle(e.Submitted(Task(str(n), "f", (str(n - 1),) if n else ()), 0), 0.0)
        controller.handle(e.Done(str(n), 1, 1, 1, 10, 0.1), 0.0)
        if n:
            controller.handle(e.Released(str(n - 1)), 0.0)
    assert len(controller.table) == count
    controller.handle(e.NodeLost(1), 1.0)
    controller.handle(e.NodeReady(2), 1.0)
    todo = controller.handle(e.Wanted(str(count - 1)), 1.0)
    assert [command.task for command in todo] == ["0"]
    for n in range(count):
        todo = controller.handle(e.Done(str(n), 2, 2, 2, 10, 0.1), 2.0)
    assert e.Available(str(count - 1)) in todo
    assert controller.rerun == count
    controller.handle(e.Released(str(count - 1)), 3.0)
    assert not controller.table


def test_lineage_is_kept_as_long_as_what_was_made_from_it() -> None:
    world = World()
    for task in CHAIN[:3]:
        world.submit(task)
    world.run_on()
    world.handle(e.Released("0"))
    world.handle(e.Released("1"))
    assert {id for store in world.stores.values() for id in store} == {"2"}
    assert set(world.controller.table) == {"0", "1", "2"}


def test_an_actor_replays_at_most_what_came_after_its_checkpoint() -> None:
    world = World(checkpoint_every=100)
    world.submit(Task("x", "Counter", actor="x"))
    tasks = [Task("x", "Counter", actor="x")]
    for n in range(1, 551):
        task = Task(f"m{n}", "add", actor="x")
        tasks.append(task)
        world.submit(task)
        if n > 1:
            world.handle(e.Released(f"m{n - 1}"))
    world.run_on()
    assert len(world.controller.table) <= 102  # older methods were let go of
    world.lose(world.controller.actors["x"].node)
    assert world.get("m550") == plain_loop(tasks)["m550"]
    assert world.controller.replayed == 50


def test_an_old_result_of_an_actor_that_somebody_still_holds() -> None:
    tasks = [Task("x", "Counter", actor="x"), *(Task(f"m{n}", "add", actor="x") for n in range(1, 20))]
    world = World(checkpoint_every=5)
    for task in tasks:
        world.submit(task)
    world.run_on()
    for task in tasks[1:]:
        if task.id != "m7":
            world.handle(e.Released(task.id))
    world.lose(world.controller.actors["x"].node)
    right = plain_loop(tasks)
    assert world.get("m7") == right["m7"]
    world.submit(Task("m20", "add", actor="x"))
    assert world.get("m20") == plain_loop([*tasks, Task("m20", "add", actor="x")])["m20"]


def test_a_task_that_runs_again_submits_the_same_tasks() -> None:
    tasks = [Task("1", "f"), Task("1.1", "g"), Task("1.2", "g", ("1.1",)), Task("2", "h", ("1",))]
    world = World()

    def submits(task: Task) -> None:
        if task.id == "1":
            for child in tasks[1:3]:
                world.submit(child, 1)

    world.on_run = submits
    world.submit(tasks[0])
    world.submit(tasks[3])
    world.run_on()
    assert set(world.controller.table) == {"1", "1.1", "1.2", "2"}
    for node in list(world.queues):
        world.lose(node)
    world.join()
    assert world.get("2") == plain_loop(tasks)["2"]
    assert world.get("1.2") == plain_loop(tasks)["1.2"]
    for id in ("1", "2"):
        world.handle(e.Released(id))
    world.run_on()
    assert not world.controller.table


def test_what_was_put_and_lost_is_gone_and_so_is_what_needs_it() -> None:
    world = World()
    world.stores[1]["p"] = 1
    world.handle(e.Put("p", 1, 100))
    world.lose(1)
    world.submit(Task("a", "f", ("p",)))
    world.submit(Task("b", "f", ("a",)))
    world.handle(e.Wanted("b"))
    assert world.gone == {"b"}
    world.handle(e.Wanted("p"))
    assert world.gone == {"b", "p"}
    world.handle(e.Wanted("never was"))
    assert "never was" in world.gone


def test_what_was_put_is_kept_for_those_that_may_read_it_again() -> None:
    world = World()
    world.stores[0]["p"] = 1
    world.handle(e.Put("p", 0, 100))
    world.submit(Task("a", "f", ("p",)))
    world.run_on()
    world.handle(e.Released("p"))
    value = world.get("a")
    world.lose(next(iter(world.controller.table["a"].where)))
    assert world.get("a") == value
    world.handle(e.Released("a"))
    assert not world.controller.table
    assert not world.stores[0]


def test_a_task_waits_for_a_node_that_has_what_it_needs() -> None:
    world = World()
    world.submit(Task("a", "f", needs=(("gpu", 1.0),)))
    assert world.run_on() == 0
    node = world.join(gpu=1.0)
    world.run_on()
    assert list(world.controller.table["a"].where) == [node]


def test_no_node_is_sent_more_than_it_can_do_soon() -> None:
    world = World(ahead_s=4.0)  # each task takes a second
    for n in range(20):
        world.submit(Task(str(n), "f"))
    assert [node.backlog for node in world.controller.nodes.values()] == [2, 2]
    world.step(1)
    assert [node.backlog for node in world.controller.nodes.values()] == [4, 2]
    world.run_on()
    assert all(world.controller.table[str(n)].where for n in range(20))


def test_edges() -> None:
    tasks = [
        Task("1", "Counter", actor="1"),
        Task("2", "f"),
        Task("2.1", "add", ("2",), actor="1"),
    ]
    assert list(edges(tasks)) == [
        Edge("data", "2", "2.1"),
        Edge("control", "2", "2.1"),
        Edge("state", "1", "2.1"),
    ]


def test_the_same_events_give_the_same_commands() -> None:
    events = [e.NodeReady(1), e.NodeReady(2), *(e.Submitted(task, 0) for task in ACTOR), e.NodeLost(1)]
    first, second = Tasks("random"), Tasks("random")
    assert [first.handle(event, 0.0) for event in events] == [second.handle(event, 0.0) for event in events]
