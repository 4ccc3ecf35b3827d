"""What an agent does on its machine: carries out orders of the control plane, and tells what becomes of them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from nubes.drivers.local import payload, wire
from nubes.drivers.local.environments import Environments
from nubes.drivers.local.limits import Limits
from nubes.drivers.local.objects import is_url
from nubes.drivers.local.processes import Processes
from nubes.drivers.remote import code, messages
from nubes.drivers.remote.carrying import Carrier, InOrder
from nubes.functions import events as e
from nubes.functions.spec import FunctionSpec
from nubes.kernel.errors import NubesError, Unavailable, UsageError


class Work:
    """The instances of one life of an agent. `send` takes news; `leave` is called when nothing is left to do here."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, folder: Path, shared: Path, carrier: Carrier,
        send: Callable[[Any], None], leave: Callable[[], None],
    ) -> None:  # fmt: skip
        self._folder = folder
        self._carrier = carrier
        self._send = send
        self._leave = leave
        self._specs: dict[str, FunctionSpec] = {}
        self._around: dict[str, messages.Surroundings] = {}
        self._held: dict[str, list[messages.Do]] = {}  # by the function whose files they wait for
        self._prime = False
        self._arguments: dict[int, str] = {}  # segments with those of calls
        self._in_order = InOrder(loop)
        for name in ("objects", "output", "environments", "code"):
            (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        self._segments = payload.Segments(str(shared), keep=False)
        self.objects = folder / "objects"
        self._environments = Environments(folder / "environments")
        self.processes = Processes(
            loop, folder, shared, self._specs, self._report, self._frame, self._python, self._settings,
            Limits(groups_of(folder)), lambda: self._prime, str(self.objects),
        )  # fmt: skip

    def close(self) -> None:
        """Ends everything at once."""
        self.processes.close()
        self._environments.close()

    # -- orders --------------------------------------------------------------------------------------------------

    def ordered(self, order: Any) -> None:
        if isinstance(order, messages.Run):
            self._run(order)
        elif isinstance(order, messages.Files):
            self._unpack(order)
        elif isinstance(order, messages.Bye):
            self._leave()
        elif isinstance(order.command, e.StopInstance):
            self._unhold(order.command.instance)
            self.processes.stop(order.command)
        elif isinstance(order.command, e.Interrupt):
            self.processes.interrupt(order.command)
        elif isinstance(order.command, e.PruneNode):
            self.processes.prune(order.command)
        elif order.around is not None:
            self._prepare(order, order.around)

    def _run(self, order: messages.Run) -> None:
        """Gives calls to an instance, with their large arguments in this machine's memory."""
        carrier, segments = self._carrier, self._segments
        work = None
        if any(map(carrier.waits, order.inputs)):
            work = lambda: [carrier.unpack(data, segments) for data in order.inputs]  # noqa: E731
        self._in_order.do(order.command.instance, work, lambda inputs: self._ran(order, inputs))

    def _ran(self, order: messages.Run, inputs: list[bytes] | Exception | None) -> None:
        command = order.command
        if isinstance(inputs, Exception):
            reason = f"its arguments could not be had: {inputs}"
            self.processes.stop(e.StopInstance(command.instance, reason, kill=True))
            return
        for call, data in zip(command.calls, inputs or (), strict=False):
            if payload.segment_of(data):
                self._arguments[call] = payload.segment_of(data)
        self.processes.dispatch(command, order.keep, order.inputs if inputs is None else inputs)

    def _prepare(self, order: messages.Do, around: messages.Surroundings) -> None:
        """Starts what is to be started, once the function's files are here."""
        name = around.spec.name
        held = self._held.get(name)
        if held is not None:
            held.append(order)
            return
        known = self._specs.get(name)
        if known is not None and known.code.digest == around.spec.code.digest:
            around.spec = msgspec.structs.replace(around.spec, code=known.code)
        elif not code.is_here(around.spec.code):
            self._held[name] = [order]
            self._send(messages.Wants(name))
            return
        self._start(order, around)

    def _unpack(self, files: messages.Files) -> None:
        for order in self._held.pop(files.function, []):
            around = order.around
            assert around is not None
            try:
                if files.error:
                    raise UsageError(files.error)
                place = self._folder / "code"
                around.spec = msgspec.structs.replace(
                    around.spec, code=code.unpack(around.spec.code, files.files, place)
                )
            except (NubesError, OSError) as error:
                self._failed(order.command, f"its files could not be had: {error}")
                continue
            self._start(order, around)

    def _start(self, order: messages.Do, around: messages.Surroundings) -> None:
        command = order.command
        self._specs[around.spec.name] = around.spec
        self._around[around.spec.name] = around
        missing = [name for name in around.volumes.values() if not os.path.isdir(name)]
        if missing:
            self._failed(command, f"its volume {missing[0]} is not on this machine; share the folder between machines")
        elif isinstance(command, e.StartInstance):
            self.processes.start(command)
        elif isinstance(command, e.GrowNode):
            self._prime = order.prime
            self.processes.grow(command)

    def _failed(self, command: Any, reason: str) -> None:
        if isinstance(command, e.StartInstance):
            self._report(e.InstanceLost(command.instance, reason))
        elif isinstance(command, e.GrowNode):
            self._report(e.NodeLost(command.node, reason))

    def _unhold(self, instance: int) -> None:
        """What is stopped need not be started any more."""
        for orders in self._held.values():
            for order in orders:
                if isinstance(order.command, e.StartInstance) and order.command.instance == instance:
                    orders.remove(order)
                    self._report(e.InstanceLost(instance, "it was stopped before it was started"))
                    return

    # -- news ----------------------------------------------------------------------------------------------------

    def _report(self, event: Any) -> None:
        self._send(messages.Happened(event))

    def _frame(self, instance: int, frame: list[Any]) -> None:
        keep = False
        place = wire.RESULTS.get(frame[0])
        if place is not None:
            segment = payload.segment_of(frame[place])
            keep = payload.is_object(segment) and not is_url(segment)
            frame[place] = self._carrier.pack(frame[place], "")
            if keep:
                payload.discard(segment)
        if frame[0] == wire.DONE and frame[1] in self._arguments:
            payload.discard(self._arguments.pop(frame[1]))
        process = self.processes.instances.get(instance) if frame[0] == wire.READY else None
        self._send(messages.Said(instance, frame, keep, process.pid if process is not None else 0))

    # -- what processes need -------------------------------------------------------------------------------------

    def _python(self, environment: str) -> str:
        if not environment:
            return sys.executable
        for around in self._around.values():
            if around.spec.environment == environment and os.path.exists(around.python):
                return around.python
        path = self._environments.python(environment)
        if path is None:
            raise Unavailable(
                f"Environment {environment} is not on this machine.", "Share the data folder between machines."
            )
        return str(path)

    def _settings(self, spec: FunctionSpec) -> tuple[dict[str, str], dict[str, str]]:
        around = self._around[spec.name]
        return {**around.env, "NUBES_SOCKET": str(self._folder / "socket")}, around.volumes


def groups_of(folder: Path) -> str:
    """What an agent's control groups are called: as before a crash, so that what was left of it is found and ended."""
    return f"nubes-agent-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]}"
