"""Instances that are to go for a deployment or a drain go when their function can bear it: TaskControl (Twine, OSDI
2020) for functions that name a policy of the seam `disruption`. Of the others they go at once, and nothing here is in
the way.

What an event changed of such a function is noted (`State.unsettled`) and told to its task control once the event is
handled, all together: so it never hears of half a change.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from nubes.cluster import task_control as t
from nubes.cluster.seams import Disruption, Operation, TaskView
from nubes.functions import events as e
from nubes.functions.instances import MOVED, REPLACED, beyond, review, unsettle
from nubes.functions.serving import after_stop
from nubes.functions.spec import FunctionSpec
from nubes.functions.state import Function, Instance, State
from nubes.kernel.errors import UsageError
from nubes.kernel.message import Event
from nubes.kernel.policy import make

USUAL = "at-once"
WHY = {"update": REPLACED, "move": MOVED}


def control_of(c: State, spec: FunctionSpec) -> t.TaskControl | None:
    """What a function asks for, or else the cloud's, if that fits it; None: its instances go at once."""
    policy: Disruption = c._make("disruption", spec.disruption or c.disruption.text)
    return None if policy.name == USUAL or _problem(spec, policy) else t.TaskControl(policy)


def verify_control(spec: FunctionSpec) -> None:
    """Raises `UsageError` if the policy that a function names could never let its instances go."""
    policy: Disruption = make("disruption", spec.disruption or None)
    if policy.name != USUAL and (problem := _problem(spec, policy)):
        raise UsageError(f"{spec.name!r} cannot have disruption={spec.disruption!r}: {problem[0]}.", problem[1])


def _problem(spec: FunctionSpec, policy: Disruption) -> tuple[str, str] | None:
    """Why a policy does not fit a function, and what to do about it."""
    if not spec.min_instances:
        return "it asks for no instances that are to stay", "Say how many are to be there, e.g. min_instances=3."
    if policy.shards:
        return "instances of functions hold no shards", "Choose another policy, e.g. quorum."
    if policy.method:
        if policy.method in spec.methods:
            return None
        return f"it has no method {policy.method!r} to be asked", "Write it, and mark it @nubes.method()."
    ahead = 1 if spec.max_instances != spec.min_instances else 0  # as many more as an update starts first
    tasks = [TaskView(str(n)) for n in range(spec.min_instances + ahead)]
    if not policy.allow([Operation(n, "update", task.name) for n, task in enumerate(tasks)], (), tasks, 0.0):
        return f"of {len(tasks)} instances it lets none go", "Let fewer be enough, or ask for more min_instances."
    return None


def govern(c: State, f: Function, spec: FunctionSpec) -> None:
    """What a function asks for decides from here on, over instances that were let go before, too."""
    f.control = control_of(c, spec)
    for i in f.instances.values():
        i.leaving = False
    unsettle(c, f)


def switch(c: State, f: Function, now: float) -> None:
    """Another policy decides over `f`."""
    govern(c, f, f.spec)
    for i in list(f.instances.values()):
        review(c, i, WHY["move" if i.machine.draining else "update"], now)
    after_stop(c, f, now)


def settle(c: State, now: float) -> None:
    """Tells task controls what they have yet to hear of, and does what they say."""
    while c.unsettled:
        _, f = c.unsettled.popitem()
        if f.control is not None and c.functions.get(f.name) is f:
            _feed(c, f, f.control, _news(f, f.control), now)


def _news(f: Function, control: t.TaskControl) -> list[Event]:
    """What task control has not heard of; the bad first, so that it is never offered more than there is.

    An operation is over once its instance is gone and the function has as many again as it asked for.
    """
    tasks = [TaskView(str(i.id), i.ready and not i.leaving) for i in f.instances.values()]
    names = {task.name for task in tasks}
    wanted = {i.id: _operation(i) for i in f.instances.values() if i.outdated() and not i.leaving}
    fresh = (one for id, one in wanted.items() if id not in control.running and control.pending.get(id) != one)
    changed = sorted((task for task in tasks if control.tasks.get(task.name) != task), key=lambda task: task.healthy)
    return [
        t.Withdrawn(tuple(id for id, one in control.pending.items() if wanted.get(id) != one)),
        *(t.TaskGone(name) for name in control.tasks if name not in names),
        *(t.TaskChanged(task) for task in changed),
        *(t.Completed(id) for id in control.running if id not in f.instances and beyond(f) >= 0),
        t.Requested(tuple(fresh)),
    ]


def _operation(i: Instance) -> Operation:
    kind, goes_s = ("move", i.machine.goes_s) if i.machine.draining else ("update", inf)
    return Operation(i.id, kind, str(i.id), goes_s)


def _feed(c: State, f: Function, control: t.TaskControl, news: Iterable[Event], now: float) -> None:
    commands = [command for event in news for command in control.handle(event, now)]
    for command in commands:
        if isinstance(command, t.Execute):
            _let_go(c, f, command.operation, now)
        elif isinstance(command, t.WakeAt):
            c.out.append(e.SetTimer(command.at_s, ("disruption", f.name)))
        elif isinstance(command, t.Offer) and command.offer == control.offers:  # an older one need not be answered
            asked = c.inner_call(), f.spec.name, f.variant, control.policy.method
            c.out.append(e.AskDisruption(*asked, command.offer, command.pending, command.running))


def _let_go(c: State, f: Function, operation: Operation, now: float) -> None:
    """An instance ends after its calls; others take its place."""
    i = f.instances.get(operation.id)
    if i is not None:
        i.leaving = True
        unsettle(c, f)
        review(c, i, WHY[operation.kind], now)
        after_stop(c, f, now)


def timer(c: State, name: str, now: float) -> None:
    f = c.functions.get(name)
    if f is not None and f.control is not None:
        _feed(c, f, f.control, (t.Timer(),), now)


def answered(c: State, event: e.DisruptionAnswered, now: float) -> None:
    f = c.functions.get(event.function)
    if f is not None and f.control is not None:
        _feed(c, f, f.control, (t.Answered(event.offer, event.allowed),), now)
