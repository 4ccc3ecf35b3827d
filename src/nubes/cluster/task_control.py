"""TaskControl: operations that disrupt an application are offered to it, and done as it can bear them (Twine).

Whoever wants to update, restart, move or preempt tasks, or their hosts, asks here first. What is pending is offered as
a batch, to a policy of the seam `disruption` or to the application itself; what it allows is executed, and the rest is
offered again whenever something has changed, until its deadline.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from nubes.cluster.seams import Disruption, Operation, TaskView
from nubes.kernel.message import Command, Event
from nubes.kernel.policy import make

AGAIN_S = 10.0  # after which an application that allowed nothing, or did not answer, is asked once more


class Requested(Event, frozen=True):
    """These are to be done."""

    operations: tuple[Operation, ...]


class Withdrawn(Event, frozen=True):
    """Those of these that have not begun need not be done any more."""

    operations: tuple[int, ...]


class Answered(Event, frozen=True):
    """The application's answer to an offer: what of it may begin."""

    offer: int
    allowed: tuple[int, ...]


class Completed(Event, frozen=True):
    """An operation that was executed is over: its task is as it will be."""

    operation: int


class TaskChanged(Event, frozen=True):
    """A task is there, fell ill, got well or became leader."""

    task: TaskView


class TaskGone(Event, frozen=True):
    """A task is no longer part of the application."""

    task: str


class Timer(Event, frozen=True):
    """The time has come that `WakeAt` named."""


class Offer(Command, frozen=True):
    """Ask the application which of these may begin; only the answer to the newest offer counts."""

    offer: int
    pending: tuple[Operation, ...]
    running: tuple[Operation, ...]


class Execute(Command, frozen=True):
    """Do it now; `forced`: its deadline has come."""

    operation: Operation
    forced: bool = False


class WakeAt(Command, frozen=True):
    at_s: float


class TaskControl:
    """One application's operations. Sans-I/O: feed it the events above, do the commands it returns."""

    def __init__(self, policy: str | Disruption | None = None, tasks: Iterable[TaskView] = ()) -> None:
        self.policy: Disruption = make("disruption", policy)
        self.tasks = {task.name: task for task in tasks}
        self.pending: dict[int, Operation] = {}
        self.running: dict[int, Operation] = {}
        self.offers = 0  # made so far
        self.open = False  # whether the newest offer has no answer yet
        self.wake_s = inf  # when the timer fires

    def handle(self, event: Event, now: float) -> list[Command]:
        out: list[Command] = []
        if isinstance(event, Answered):
            if event.offer == self.offers and self.open:
                self.open = False
                self._begin(event.allowed, out)
                self._again(now + AGAIN_S, out)
            return out
        if not self._changes(event):
            return out
        self._expire(now, out)
        if self.pending:
            self._offer(now, out)
        return out

    def _changes(self, event: Event) -> bool:
        """Takes the event in; False if it says nothing new."""
        if isinstance(event, Requested):
            fresh = [one for one in event.operations if one.id not in self.pending and one.id not in self.running]
            self.pending.update((one.id, one) for one in fresh)
            return bool(fresh)
        if isinstance(event, Withdrawn):
            known = [id for id in event.operations if id in self.pending]
            for id in known:
                del self.pending[id]
            return bool(known)
        if isinstance(event, Completed):
            return self.running.pop(event.operation, None) is not None
        if isinstance(event, TaskChanged):
            before = self.tasks.get(event.task.name)
            self.tasks[event.task.name] = event.task
            return before != event.task
        if isinstance(event, TaskGone):
            return self.tasks.pop(event.task, None) is not None
        self.wake_s = inf
        return True

    def _expire(self, now: float, out: list[Command]) -> None:
        """What has reached its deadline is done, unless its task is in the middle of something."""
        busy = {one.task for one in self.running.values()}
        for one in sorted(self.pending.values(), key=lambda one: (one.deadline_s, one.id)):
            if one.deadline_s <= now and one.task not in busy:
                busy.add(one.task)
                self.running[one.id] = self.pending.pop(one.id)
                out.append(Execute(one, forced=True))

    def _offer(self, now: float, out: list[Command]) -> None:
        pending, running = tuple(self.pending.values()), tuple(self.running.values())
        self.offers += 1
        if self.policy.method:
            self.open = True
            out.append(Offer(self.offers, pending, running))
            self._again(now + AGAIN_S, out)
        else:
            self._begin(self.policy.allow(pending, running, tuple(self.tasks.values()), now), out)
            self._again(inf, out)

    def _begin(self, allowed: Iterable[int], out: list[Command]) -> None:
        """Two operations on one task are not done at once, whoever allows it."""
        busy = {one.task for one in self.running.values()}
        for id in allowed:
            one = self.pending.get(id)
            if one is not None and one.task not in busy:
                busy.add(one.task)
                self.running[id] = self.pending.pop(id)
                out.append(Execute(one))

    def _again(self, at: float, out: list[Command]) -> None:
        """Sees to it that pending operations are looked at again, by their deadlines at the latest."""
        busy = {one.task for one in self.running.values()}
        at = min([at, *(one.deadline_s for one in self.pending.values() if one.task not in busy)])
        if self.pending and at < self.wake_s:
            self.wake_s = at
            out.append(WakeAt(at))
