"""What holds between any two events of the functions controller, recomputed from scratch.

For tests and for simulations that inject faults: `check` after every event, on whatever a driver did to the controller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from nubes.functions.choosing import MOST_AHEAD, covered
from nubes.functions.instances import SHORT
from nubes.functions.queues import waiting
from nubes.functions.state import RETRIES, SHARES, WAITS, Call, Function, Instance, State


def check(controller: State) -> list[str]:
    """One sentence for each thing that should hold and does not; empty if all is well."""
    return [
        *_instances(controller),
        *_calls(controller),
        *_machines(controller),
        *_progress(controller),
        *_tree(controller),
        *_replicas(controller),
        *_disruptions(controller),
    ]


def excess(controller: State) -> tuple[float, float]:
    """CPU and memory bytes in use beyond capacity: more than 0 only after capacity shrank or live instances grew."""
    machines = controller.machines.values()
    cpu = sum(max(0.0, m.cpu_used - m.cpu) for m in machines)
    return cpu, sum(max(0.0, m.memory_used - m.memory_bytes) for m in machines)


def _instances(c: State) -> Iterator[str]:
    everywhere = {id: i for f in c.functions.values() for id, i in f.instances.items()}
    if everywhere != c.instances:
        yield f"instances: the controller knows {sorted(c.instances)}, its functions {sorted(everywhere)}"
    for f in c.functions.values():
        for name, counted, right in (
            ("starting", f.starting, sum(not i.ready for i in f.instances.values())),
            ("busy", f.busy, sum(i.ready and i.load > 0 for i in f.instances.values())),
            ("idle", f.idle, sum(i.ready and not i.load for i in f.instances.values())),
            ("queued", f.queued, len(f.waiting)),
        ):
            if counted != right:
                yield f"{f.name}: {name} is {counted}, but there are {right}"
        if (
            f.spec.max_instances
            and len([i for i in f.instances.values() if i.version == f.version]) > f.spec.max_instances
        ):
            yield f"{f.name}: {len(f.instances)} instances, more than its {f.spec.max_instances}"
        for instance in f.instances.values():
            yield from _instance(c, f, instance)


def _instance(c: State, f: Function, i: Instance) -> Iterator[str]:
    if i.function is not f or i.stopping:
        yield f"instance {i.id}: of {i.function.name} and stopping={i.stopping}, but among those of {f.name}"
    if i.load != len(i.calls):
        yield f"instance {i.id}: load is {i.load}, but it runs {sorted(i.calls)}"
    if i.load and not i.ready:
        yield f"instance {i.id}: runs {sorted(i.calls)} before it is ready"
    if i.version == f.version and i.load > room(f):
        yield f"instance {i.id}: runs {i.load} calls, has room for {room(f)}"
    if i.calls and i.version == f.version and i.wake_s > min(i.calls.values()) + f.spec.timeout_s:
        yield f"instance {i.id}: nothing ends its calls {sorted(i.calls)} when their time is over"
    if not i.load and i.wake_s > (i.expire_s if i.ready else i.started_s + f.spec.startup_timeout_s):
        yield f"instance {i.id}: nothing ends it when its time is over"
    if c.machines.get(i.machine.id) is not i.machine or i.machine.instances.get(i.id) is not i:
        yield f"instance {i.id}: on machine {i.machine.id}, which does not know it"
    right = i.takes()
    if (i.id in f.open) != right:
        yield f"instance {i.id} of {f.name}: open is {i.id in f.open}, should be {right} (load {i.load}, uses {i.uses})"


def room(f: Function) -> int:
    """Calls that one instance of `f` may run at once."""
    return f.spec.batching.max_batch_size if f.spec.batching else max(f.room, MOST_AHEAD if f.room == 1 else 1)


def _calls(c: State) -> Iterator[str]:
    queued: dict[int, str] = {}
    for f in c.functions.values():
        for call in waiting(f):
            if (
                call.id in queued
                or c.calls.get(call.id) is not call
                or call.function is not f
                or call.instance != WAITS
            ):
                yield f"call {call.id}: queued at {f.name} with instance {call.instance}, also at {queued.get(call.id)}"
            queued[call.id] = f.name
    for call in c.calls.values():
        f = call.function
        if c.functions.get(f.name) is not f:
            yield f"call {call.id}: its function {f.name} is gone"
        elif call.instance == WAITS:
            if queued.get(call.id) != f.name:
                yield f"call {call.id}: waits for {f.name}, but is in no queue"
        elif call.instance == SHARES:
            first = c.calls.get(c.aliases.get(call.id, -1))
            if not call.keep or first is None or first.keep or (first.key, first.asked) != (call.key, call.asked):
                yield f"call {call.id}: waits for the answer of {first.id if first else 'none'}, and should not"
        elif call.instance != RETRIES:
            instance = c.instances.get(call.instance)
            if instance is None or call.id not in instance.calls:
                yield f"call {call.id}: runs on instance {call.instance}, which does not run it"
        yield from _copies(c, call)
    for (name, key), id in c.keys.items():
        first = c.calls.get(id)
        if not key or (first is not None and (first.key, first.asked) != (key, name)):
            yield f"key {key!r} of {name}: stands for call {id}, which is another's"
    aliases = {other: call.id for call in c.calls.values() for other in call.also}
    if aliases != c.aliases:
        yield f"aliases: {c.aliases}, but calls say {aliases}"
    if set(c.owners) != {id for id in c.aliases if id not in c.calls}:
        yield f"aliases: {c.aliases}, of which {sorted(c.owners)} have owners"


def _copies(c: State, call: Call) -> Iterator[str]:
    """A call runs on several instances only if it may, and on each once."""
    if not call.copies:
        return
    where = (call.instance, *call.copies)
    if call.instance <= 0 or len(set(where)) < len(where):
        yield f"call {call.id}: runs on {where}"
    f = call.function
    before = any(id in f.instances and f.instances[id].version != f.version for id in where)  # then it was another's
    if not (f.spec.idempotent or before) or call.hop or call.route:
        yield f"call {call.id}: runs on {where}, but may run only once"
    for id in call.copies:
        if id not in c.instances or call.id not in c.instances[id].calls:
            yield f"call {call.id}: has a copy on instance {id}, which does not run it"


def _replicas(c: State) -> Iterator[str]:
    for f in c.functions.values():
        if f.replicas is None:
            continue
        for id, replica in f.replicas.known.items():
            if f.instances.get(id) is not replica.instance:
                yield f"{f.name}: knows replica {id}, which is gone"
            elif replica.view.rif != replica.instance.load:
                yield f"{f.name}: replica {id} has {replica.view.rif} in flight, its instance {replica.instance.load}"
        for call, id in f.replicas.shadows.items():
            if id not in f.instances or call not in f.instances[id].calls:
                yield f"{f.name}: instance {id} does not run the shadow of call {call}"


def _disruptions(c: State) -> Iterator[str]:
    """Task control knows every instance as it is, all that are to go are offered to it, and only who may goes."""
    if c.unsettled:
        yield f"task control of {sorted(c.unsettled)} has not heard of everything"
    for f in c.functions.values():
        if f.control is None:
            if left := [i.id for i in f.instances.values() if i.leaving]:
                yield f"{f.name}: has no task control, yet instances {left} are to go"
            continue
        control = f.control
        known = {int(task.name): task.healthy for task in control.tasks.values()}
        if known != {i.id: i.ready and not i.leaving for i in f.instances.values()}:
            yield f"{f.name}: its task control knows {known}"
        if set(control.pending) != {i.id for i in f.instances.values() if i.outdated() and not i.leaving}:
            yield f"{f.name}: its task control is offered {sorted(control.pending)}"
        if stay := [id for id in control.running if id in f.instances and not f.instances[id].leaving]:
            yield f"{f.name}: its task control let {stay} go, but they stay"


def _machines(c: State) -> Iterator[str]:
    for m in c.machines.values():
        cpu = sum(i.function.cpu for i in m.instances.values() if i.load or not i.ready)
        if cpu != m.cpu_used:
            yield f"machine {m.id}: CPU in use is {m.cpu_used!r}, should be {cpu!r}"
        memory = sum(i.function.spec.memory_bytes for i in m.instances.values())
        if memory != m.memory_used:
            yield f"machine {m.id}: memory in use is {m.memory_used}, should be {memory}"
    on = {id for m in c.machines.values() for id in m.instances}
    if on != set(c.instances):
        yield f"instances: the controller knows {sorted(c.instances)}, its machines {sorted(on)}"
    if c.draining != sum(m.draining for m in c.machines.values()):
        yield f"{c.draining} machines are draining, but those are {[m.id for m in c.machines.values() if m.draining]}"


def _progress(c: State) -> Iterator[str]:
    """Every function with waiting calls has something under way that will serve them."""
    line = [(f.name, order == SHORT) for order, _, f in c.blocked if c.functions.get(f.name) is f]
    if len(line) != len(set(line)):
        yield f"somebody stands in line twice: {sorted(line)}"
    running = any(f.busy or f.starting for f in c.functions.values())
    for f in c.functions.values():
        if f.blocked != ((f.name, False) in line) or f.short != ((f.name, True) in line):
            yield f"{f.name}: blocked={f.blocked}, short={f.short}, but in line stand {sorted(line)}"
        if not f.queued or c.queueing.limits:
            continue
        held = f.held_s < float("inf")
        if not (f.blocked or held or f.starting or f.busy):
            yield f"{f.name}: {f.queued} calls wait for nothing"
        if f.blocked and not held and not running and len(c.machines) > c.draining:
            yield f"{f.name}: waits for room while nothing runs"
        able = [i for i in f.open.values() if i.load or i.machine.cpu_used + f.cpu <= i.machine.cpu]
        if not (f.blocked or held) and any(not i.uses or not covered(f) for i in able):
            yield f"{f.name}: {f.queued} calls wait although instances {sorted(f.open)} have room"


def _tree(c: State) -> Iterator[str]:
    nodes = {id: n for group in c.tree.nodes.values() for id, n in group.items()}
    if nodes != c.tree.where:
        yield f"tree: {sorted(c.tree.where)} in one table, {sorted(nodes)} in the other"
    children = Counter(node.parent for node in nodes.values())
    for node in nodes.values():
        if node.children != children[node.id]:
            yield f"node {node.id}: counts {node.children} children, has {children[node.id]}"
        if node.parent and node.parent not in nodes:
            yield f"node {node.id}: its parent {node.parent} is gone"
    for machine, _ in c.tree.nodes:
        if machine not in c.machines:
            yield f"tree: has parents on machine {machine}, which is gone"
    for id, instances in c.tree.waiting.items():
        if id not in nodes or nodes[id].ready:
            yield f"tree: instances {[i.id for i in instances]} wait for node {id}, which is gone or ready"
