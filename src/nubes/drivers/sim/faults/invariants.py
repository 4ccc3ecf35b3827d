"""What must hold whatever happens: one list. A new area appends its own here.

What is promised (see docs/guarantees.md): a durable call that a client was told is accepted runs at least once and is
answered, the same to everybody; it runs again only if its instance was given up, it failed and has retries left, or the
control plane came back. What clients and machines see is checked as they see it, by the oracle, and collected there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from nubes.functions import invariants as controller
from nubes.functions.controller import Functions
from nubes.functions.events import EVENTS
from nubes.kernel.fingerprint import fingerprint
from nubes.kernel.message import Codec

ORPHANED_S = 5.0  # how long a control plane and its machines may disagree, and messages be on their way

if TYPE_CHECKING:
    from nubes.drivers.sim.faults.world import World

Check = Callable[["World"], Iterator[str]]
EVENT, RECOVERY, END = "after every event", "after every recovery", "at the end"


class Invariant(NamedTuple):
    """One thing that holds. `when` it is looked at; `check` yields a sentence for each way in which it does not."""

    name: str
    when: str
    check: Check


INVARIANTS: list[Invariant] = []
_decode = Codec(EVENTS).decode


def invariant(when: str) -> Callable[[Check], Check]:
    """Appends a check to the list, under its own name."""

    def append(check: Check) -> Check:
        INVARIANTS.append(Invariant(check.__name__.replace("_", " "), when, check))
        return check

    return append


@invariant(EVENT)
def what_was_seen_may_be(world: World) -> Iterator[str]:
    """Nothing is told that is not safe, nothing answered or done twice, no machine or instance overloaded."""
    yield from world.oracle.wrong


@invariant(EVENT)
def the_controller_is_consistent(world: World) -> Iterator[str]:
    """Every resource is counted once, no instance is over its limits, every call is in one place, and moves on."""
    yield from controller.check(world.plane.controller)


@invariant(EVENT)
def time_does_not_go_back(world: World) -> Iterator[str]:
    """The control plane's clock goes on, over restarts too, and does not stand still."""
    now = world.plane.now
    if now < world.last_now:
        yield f"it was {world.last_now}, and is {now}"
    since, at = world.recovered_at
    if now < since + (world.timeline.now - at) - 1e-3:
        yield f"it was {since} {world.timeline.now - at:.3f} s ago, and is {now}"
    world.last_now = now


@invariant(RECOVERY)
def the_log_is_a_beginning_of_what_was_written(world: World) -> Iterator[str]:
    """Records come back as they were, in order, without a gap."""
    log = world.plane.journal.log
    found, written = list(log.records(log.first)), world.oracle.lineage[log.first : log.count]
    if found != written:
        at = next((n for n, pair in enumerate(zip(found, written, strict=False)) if pair[0] != pair[1]), len(found))
        yield f"record {log.first + at} of {log.count} is not what was written"


@invariant(RECOVERY)
def the_state_is_the_fold_of_the_log(world: World) -> Iterator[str]:
    """Whether it came from a snapshot or not. It takes long to see, so every other world looks."""
    log = world.plane.journal.log
    if not log.snapshot_at or world.seed % 2:
        return
    state = Functions()
    for record in world.oracle.lineage[: log.count]:
        now, event = _decode(record)
        state.handle(event, now)
    if fingerprint(state) != fingerprint(world.plane.controller):
        yield f"the state of {log.count} records, from that of {log.snapshot_at}, is not their fold"


@invariant(RECOVERY)
def no_accepted_work_is_lost(world: World) -> Iterator[str]:
    """What a client was told is accepted is known after any crash."""
    state = world.plane.controller
    for call in world.oracle.accepted:
        if call not in state.calls and call not in state.results:
            yield f"call {call} was accepted, and is lost"
    if state.apps.get("a", (0, (), False))[0] < world.oracle.version:
        yield f"version {world.oracle.version} of the app was deployed, and is lost"


@invariant(RECOVERY)
def answers_stay(world: World) -> Iterator[str]:
    """What a client was told of a durable call is what everybody is told."""
    results = world.plane.controller.results
    for call, (status, reason, output) in world.oracle.answers.items():
        kept = results.get(call)
        if kept is None or (kept.status, kept.reason, kept.output) != (status, reason, output):
            yield f"call {call} was answered {status} {output!r}, and that is not kept"


@invariant(RECOVERY)
def damage_is_noticed(world: World) -> Iterator[str]:
    """A bit that turned in what is read is found, not believed."""
    aside = any(name.endswith(".damaged") for name in world.disk.files)  # perhaps by a start that then failed
    if world.lost_to_rot and not (aside or world.plane.journal.log.findings):
        yield "a file is damaged, records are missing, and nothing is said of it"


@invariant(END)
def nothing_is_left_of_who_is_gone(world: World) -> Iterator[str]:
    """Once all is answered, nobody waits for anything and nothing is kept for them in memory."""
    plane, state = world.plane, world.plane.controller
    if plain := [call.id for call in state.calls.values() if not call.keep]:
        yield f"calls {plain[:5]} go on, though whoever waited for them is gone"
    if keys := [key for key, call in state.keys.items() if call not in state.calls and call not in state.results]:
        yield f"keys {keys[:5]} stand for calls that nobody knows"
    for what, table in (("sinks", plane.sinks), ("inputs", plane.inputs), ("outputs", plane.outputs)):
        if left := [call for call in table if call not in state.calls]:
            yield f"{what} of {left[:5]} are kept, though those calls are over"


def disagreements(world: World) -> set[tuple[str, str, int, int]]:
    """(how, what, machine, id) of all that is there and not known to the control plane, or known and not there."""
    state = world.plane.controller
    known: set[tuple[str, int, int]] = set()
    found: set[tuple[str, int, int]] = set()
    names = {machine.id: machine.number for machine in world.machines if machine.up or not machine.number}
    for id, m in state.machines.items():
        known.add(("machine", names.get(id, -id), 0))
        known |= {("instance", names.get(id, -id), instance) for instance in m.instances}
    known |= {("parent", names.get(node.machine, -node.machine), node.id) for node in state.tree.where.values()}
    for machine in world.machines:
        if machine.number and not machine.up:
            continue
        found.add(("machine", machine.number, 0))
        found |= {("instance", machine.number, process.id) for process in machine.instances}
        found |= {("parent", machine.number, id) for id in machine.parents}
    return {("known", *one) for one in known - found} | {("there", *one) for one in found - known}


@invariant(END)
def the_control_plane_and_its_machines_agree(world: World) -> Iterator[str]:
    """Every machine that is up is a member, and runs what the controller knows of: no more and no less, for long."""
    if world.left:
        yield f"only known, or only there: {sorted(world.left)[:5]}"


@invariant(END)
def who_leaves_goes(world: World) -> Iterator[str]:
    """A machine that is to go does, once nothing is left on it."""
    for machine in world.machines[1:]:
        if machine.up and machine.leaving and not machine.instances:
            yield f"{machine.name} is to go, has nothing to do, and stays"


@invariant(END)
def what_was_sent_has_come(world: World) -> Iterator[str]:
    """Between the control plane and the agents that live."""
    before_s = world.timeline.now - ORPHANED_S
    for machine in [machine for machine in world.machines[1:] if machine.up]:
        for way in (machine.life.incarnation,), (world.life.number, machine.life.incarnation):
            if overdue := world.oracle.overdue(way, before_s):
                yield f"{overdue} messages between the control plane and {machine.name} did not come"


@invariant(END)
def everything_accepted_is_answered(world: World) -> Iterator[str]:
    """Once faults stop, every client gets the answers of all that it was told is accepted."""
    for client in world.clients:
        left = [work.kept or f"not accepted {work.call}" for work in client.works if work.answer is None]
        if left or client.plain:
            yield f"client {client.number} still waits for {left[:5]} {sorted(client.plain)[:5]}"
