"""TaskControl and its policies: what may go down at once, deadlines, and applications that answer themselves."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nubes.cluster.seams import Operation, TaskView
from nubes.cluster.task_control import (
    Answered,
    Completed,
    Execute,
    Offer,
    Requested,
    TaskChanged,
    TaskControl,
    TaskGone,
    Timer,
    WakeAt,
    Withdrawn,
)
from nubes.kernel.errors import UsageError
from nubes.kernel.message import Command
from nubes.kernel.policy import make


def tasks(count: int = 3, **leaders: bool) -> list[TaskView]:
    return [TaskView(f"t{i}", leader=leaders.get(f"t{i}", False)) for i in range(count)]


def update(*names: str, deadline_s: float = float("inf")) -> Requested:
    return Requested(tuple(Operation(int(name[1:]), "update", name, deadline_s) for name in names))


def begun(commands: list[Command]) -> list[str]:
    return [command.operation.task for command in commands if isinstance(command, Execute)]


def test_by_default_everything_goes_at_once() -> None:
    assert begun(TaskControl(None, tasks()).handle(update("t0", "t1", "t2"), 0.0)) == ["t0", "t1", "t2"]


def test_a_quorum_stays_up_and_the_leader_is_last() -> None:
    control = TaskControl("quorum(up=2)", tasks(t0=True))
    assert begun(control.handle(update("t0", "t1", "t2"), 0.0)) == ["t1"]
    assert begun(control.handle(TaskChanged(TaskView("t1", False)), 1.0)) == []
    assert begun(control.handle(Completed(1), 2.0)) == []  # over, but it is not well yet
    assert begun(control.handle(TaskChanged(TaskView("t1")), 3.0)) == ["t2"]
    assert begun(control.handle(Completed(2), 4.0)) == ["t0"]
    assert not control.pending


def test_what_is_down_anyway_may_be_worked_on() -> None:
    control = TaskControl("quorum(up=2)", [*tasks(2), TaskView("t2", False)])
    assert begun(control.handle(update("t0", "t2"), 0.0)) == ["t2"]
    control = TaskControl("one-by-one", [*tasks(2), TaskView("t2", False)])
    assert begun(control.handle(update("t0"), 0.0)) == []
    assert begun(control.handle(Requested((Operation(9, "restart", "t2"),)), 0.0)) == ["t2"]
    assert begun(control.handle(TaskChanged(TaskView("t2")), 0.0)) == []
    assert begun(control.handle(Completed(9), 0.0)) == ["t0"]


def test_no_shard_loses_two_replicas() -> None:
    on = [("a", "b"), ("b", "c"), ("c", "a"), ("d",)]
    control = TaskControl("shards", [TaskView(f"t{i}", shards=frozenset(shards)) for i, shards in enumerate(on)])
    assert begun(control.handle(update("t0", "t1", "t2", "t3"), 0.0)) == ["t0", "t3"]
    assert begun(control.handle(Completed(0), 1.0)) == ["t1"]
    assert begun(control.handle(Completed(1), 2.0)) == ["t2"]


def test_at_its_deadline_an_operation_is_done_whatever_the_application_says() -> None:
    control = TaskControl("quorum(up=3)", tasks())
    assert control.handle(update("t0", deadline_s=60.0), 0.0) == [WakeAt(60.0)]
    assert control.handle(Timer(), 60.0) == [Execute(Operation(0, "update", "t0", 60.0), forced=True)]


def test_of_one_task_only_one_operation_runs_even_past_its_deadline() -> None:
    control = TaskControl(None, tasks())
    both = Requested((Operation(1, "update", "t0"), Operation(2, "maintenance", "t0", 5.0)))
    assert begun(control.handle(both, 0.0)) == ["t0"]
    control.handle(Timer(), 6.0)
    assert list(control.running) == [1]
    assert [c.operation.id for c in control.handle(Completed(1), 7.0) if isinstance(c, Execute)] == [2]


def test_an_application_is_offered_all_and_answers_with_a_part() -> None:
    control = TaskControl("app", tasks())
    offer, wake = control.handle(update("t0", "t1"), 0.0)
    assert isinstance(offer, Offer)
    assert [one.task for one in offer.pending] == ["t0", "t1"]
    assert wake == WakeAt(10.0)
    assert begun(control.handle(Answered(offer.offer, (1, 77)), 1.0)) == ["t1"]
    assert control.handle(Answered(offer.offer, (0,)), 1.0) == []  # each offer has one answer
    (second, *_) = control.handle(Completed(1), 2.0)
    assert isinstance(second, Offer)
    assert [one.task for one in second.pending] == ["t0"]
    (third, *_) = control.handle(TaskChanged(TaskView("t2", False)), 3.0)
    assert isinstance(third, Offer)
    assert control.handle(Answered(second.offer, (0,)), 3.0) == []  # it did not know of t2 yet
    assert control.handle(Answered(third.offer, ()), 4.0) == []  # its timer runs already
    (fourth, *_) = control.handle(Timer(), 10.0)
    assert isinstance(fourth, Offer)


def test_what_is_withdrawn_is_not_done() -> None:
    control = TaskControl("one-by-one", tasks())
    control.handle(update("t0", "t1"), 0.0)
    control.handle(Withdrawn((1, 5)), 1.0)
    assert begun(control.handle(Completed(0), 2.0)) == []
    assert control.handle(Withdrawn((1,)), 2.0) == []
    assert begun(control.handle(TaskGone("t2"), 2.0)) == []


def test_what_is_said_twice_changes_nothing() -> None:
    control = TaskControl("one-by-one", tasks())
    control.handle(update("t0", "t1"), 0.0)
    assert control.handle(update("t0", "t1"), 0.0) == []
    assert control.handle(TaskChanged(TaskView("t0")), 0.0) == []
    assert control.handle(Completed(1), 0.0) == []


def test_a_negative_quorum_is_refused() -> None:
    with pytest.raises(UsageError, match="up=-1"):
        make("disruption", "quorum(up=-1)")


@settings(deadline=None, max_examples=100)
@given(
    st.integers(1, 6), st.integers(0, 4), st.sampled_from(["quorum(up={up})", "one-by-one"]),
    st.lists(st.tuples(st.sampled_from(["ask", "done", "ill", "well"]), st.integers(0, 99)), max_size=60),
)  # fmt: skip
def test_nothing_is_begun_that_takes_too_many_down(
    count: int, up: int, policy: str, moves: list[tuple[str, int]]
) -> None:
    control = TaskControl(policy.format(up=up), tasks(count))
    least = count - 1 if policy == "one-by-one" else up or count // 2 + 1
    for number, (move, which) in enumerate(moves):
        name = f"t{which % count}"
        if move == "ask":
            out = control.handle(Requested((Operation(number, "restart", name),)), 0.0)
        elif move == "done":
            out = control.handle(Completed(next(iter(control.running), -1)), 0.0)
        else:
            out = control.handle(TaskChanged(TaskView(name, move == "well")), 0.0)
        took_down = [task for task in begun(out) if control.tasks[task].healthy]
        assert not took_down or standing(control) >= least
        busy = [one.task for one in control.running.values()]
        assert len(busy) == len(set(busy))


def standing(control: TaskControl) -> int:
    busy = {one.task for one in control.running.values()}
    return sum(task.healthy and name not in busy for name, task in control.tasks.items())
