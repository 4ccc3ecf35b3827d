"""What the log says of each call: it is folded by the controller, whose answers are the log's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nubes.chaos.evidence import Logged, shown
from nubes.drivers.local import payload
from nubes.functions import events as e
from nubes.functions.controller import Functions
from nubes.workloads.recording import Timed, events_of


def calls(events: Iterable[Timed]) -> dict[int, Logged]:
    """Every call that the log knows, by its id."""
    controller = Functions()
    found: dict[int, Logged] = {}
    for now, event in events:
        if isinstance(event, e.Submitted):
            found.setdefault(event.call, Logged(event.call, event.function, event.keep, event.key))
        _lost(controller, event, found)
        for command in controller.handle(event, now):
            if isinstance(command, e.Resolve):
                logged = found.get(command.call)
                if logged is not None:
                    logged.pending = False
                    logged.answers.append(_answer(logged, command))
    for id, logged in found.items():
        logged.pending = id in controller.calls
    return found


def of_folder(folder: Path) -> dict[int, Logged]:
    """The calls in the log of a data folder."""
    return calls(events_of(folder))


def _lost(controller: Functions, event: Any, found: dict[int, Logged]) -> None:
    """Counts what calls lose with this event: the instance that they run on, or their control plane."""
    if isinstance(event, e.Restarted):
        for id in controller.calls:
            found[id].restarts += 1
        return
    gone: list[Any] = []
    if isinstance(event, e.InstanceLost):
        gone = [controller.instances.get(event.instance)]
    elif isinstance(event, e.MachineLost):
        machine = controller.machines.get(event.machine)
        gone = list(machine.instances.values()) if machine is not None else []
    for instance in gone:
        for id in instance.calls if instance is not None else ():
            if id in found:
                found[id].losses += 1


def _answer(logged: Logged, command: e.Resolve) -> tuple[str, str]:
    """(status, said), as a client would write it down."""
    if command.reason.startswith("The instance that ran the call was lost"):
        return command.status, "lost"
    if command.status not in (e.SUCCEEDED, e.FAILED) or not command.output:
        return command.status, ""
    try:
        value = payload.loads(command.output)
    except FileNotFoundError as error:
        return command.status, f"an answer that is gone: {error.filename}"
    if command.status == e.FAILED:
        return command.status, str(value[1])
    return command.status, shown(value)
