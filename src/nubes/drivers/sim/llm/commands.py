"""What the commands of a fleet's controller do to simulated engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nubes.llm.cluster import events as e
from nubes.llm.cluster.member import Role
from nubes.llm.scheduling import moving
from nubes.llm.scheduling.sequence import DECODE, Sequence

if TYPE_CHECKING:
    from nubes.drivers.sim.llm.fleet import FleetRun, Place


def _dispatch(run: FleetRun, command: e.Dispatch, now: float) -> None:
    place, number = run.places[command.id], command.number
    if place.number >= 0:
        place.sequence = place.sequence.again()
    place.number = number
    run.instance[command.id] = number
    run.instances[number].scheduler.arrive(place.sequence, now)
    run.wake(number, now)


def _cancel(run: FleetRun, command: e.Cancel, now: float) -> None:
    place = run.places.pop(command.id, None)
    if place is not None:
        run.instances[command.number].scheduler.cancel(place.sequence, now)


def _refuse(run: FleetRun, command: e.Refuse, now: float) -> None:
    del run.places[command.id]
    run.refused += 1
    run.follow(command.id, now)


def _start(run: FleetRun, command: e.Start, now: float) -> None:
    run.schedule(now + run.hardware.start_s, _started, run, command.role, now)


def _started(run: FleetRun, role: Role, begun_s: float, now: float) -> None:
    run.join(role, now, begun_s)


def _stop(run: FleetRun, command: e.Stop, now: float) -> None:
    run.stopped_s[command.id] = now
    run.idle.discard(command.id)


def _running(run: FleetRun, id: int, number: int) -> Place | None:
    """The request if it decodes there, and has since its handover began."""
    place = run.places.get(id)
    if place is None or place.number != number or place.sequence.state != DECODE:
        return None
    return None if place.opened not in (-1, place.sequence.preemptions) else place


def _look(run: FleetRun, command: e.Look, now: float) -> None:
    place = _running(run, command.id, command.number)
    if place is None:
        _gone(run, command)
        return run.tell(e.Filled(command.id, command.turn, -1), now)
    place.opened = place.sequence.preemptions
    run.tell(e.Filled(command.id, command.turn, place.sequence.context // run.size, place.sequence.known), now)


def _gone(run: FleetRun, command: e.Command) -> None:
    place = run.places.get(command.id)
    if place is not None:
        place.opened = -1


def _depart(run: FleetRun, command: e.Depart, now: float) -> None:
    place = _running(run, command.id, command.number)
    if place is None:
        _gone(run, command)
        return run.tell(e.Departed(command.id, command.turn, -1, 0), now)
    sequence, instance = place.sequence, run.instances[command.number]
    place.opened = -1
    place.stopped_s = now
    place.token_s = sequence.paused_s = max(instance.decoded_s, sequence.first_s)
    moving.depart(instance.scheduler, sequence)
    held = -(-sequence.context // run.size)
    run.tell(e.Departed(command.id, command.turn, held, sequence.known), now)


def _reserve(run: FleetRun, command: e.Reserve, now: float) -> None:
    ok = moving.reserve(run.instances[command.number].scheduler, command.id, command.blocks)
    run.tell(e.Reserved(command.id, command.turn, ok), now)


def _copy(run: FleetRun, command: e.Copy, now: float) -> None:
    size = (command.end - command.first) * run.size * run.instances[command.source].model.kv_bytes
    took = run.hardware.latency_s + size / run.hardware.link
    run.schedule(now + took, run.tell, e.Copied(command.id, command.turn))


def _land(run: FleetRun, command: e.Land, now: float) -> None:
    place = run.places.get(command.id)
    instance = run.instances[command.target]
    if place is None or command.id not in instance.scheduler.state.reserved:
        return
    landed = place.sequence.again()
    landed.paused_s = place.token_s
    moving.land(instance.scheduler, landed, now)
    place.sequence = landed
    place.number = command.target
    run.down_s.append(now - place.stopped_s)
    run.instance[command.id] = command.target
    run.expect(instance, landed)
    instance.fresh.append((place.token_s, landed))
    run.tell(e.Landed(command.id, command.turn), now)
    run.wake(command.target, now)


def _release(run: FleetRun, command: e.Release, now: float) -> None:
    scheduler = run.instances[command.number].scheduler
    held = scheduler.state.moving.get(command.id)
    if held is not None:
        moving.release(scheduler, held, now)
        run.wake(command.number, now)


def _unreserve(run: FleetRun, command: e.Unreserve, now: float) -> None:
    scheduler = run.instances[command.number].scheduler
    moving.unreserve(scheduler, command.id, now)
    ahead = run.ahead.get(run.workload.requests + command.id)
    if ahead is not None and ahead[0] == command.turn:
        scheduler.cancel(ahead[2], now)
        del run.ahead[ahead[2].id]
    run.wake(command.number, now)


def _stay(run: FleetRun, command: e.Stay, now: float) -> None:
    instance = run.instances[command.number]
    held = instance.scheduler.state.moving.get(command.id)
    if held is None:
        return
    moving.stay(instance.scheduler, held)
    place = run.places[command.id]
    run.expect(instance, held)
    instance.fresh.append((place.token_s, held))
    run.wake(command.number, now)


def _warm(run: FleetRun, command: e.Warm, now: float) -> None:
    """The target computes what is known by now as if it were a prompt, and keeps the KV for who asks for it."""
    place = run.places.get(command.id)
    if place is None or place.number != command.source:
        return
    sequence, scheduler = place.sequence, run.instances[command.target].scheduler
    if not sequence.keys:
        total = (sequence.prompt + sequence.limit) // run.size
        sequence.keys = [(command.id, nth) for nth in range(total)]
    id = run.workload.requests + command.id
    ahead = Sequence(id, sequence.known, 1, arrived_s=sequence.arrived_s, keys=sequence.keys)
    run.ahead[id] = command.turn, sequence.known, ahead
    scheduler.arrive(ahead, now)
    run.wake(command.target, now)


COMMANDS: dict[type[e.Command], Callable[[FleetRun, Any, float], None]] = {
    e.Dispatch: _dispatch,
    e.Cancel: _cancel,
    e.Refuse: _refuse,
    e.Start: _start,
    e.Stop: _stop,
    e.Look: _look,
    e.Reserve: _reserve,
    e.Copy: _copy,
    e.Depart: _depart,
    e.Stay: _stay,
    e.Release: _release,
    e.Land: _land,
    e.Unreserve: _unreserve,
    e.Warm: _warm,
}
