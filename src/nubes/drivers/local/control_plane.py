"""The control plane on this machine: log, controller, processes and clients on one event loop."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from nubes.drivers.local import payload, unattended, wire
from nubes.drivers.local.environments import Environments
from nubes.drivers.local.journal import Journal
from nubes.drivers.local.limits import Limits
from nubes.drivers.local.processes import Processes
from nubes.drivers.local.shared_folder import SharedFolder
from nubes.drivers.local.stores import Stores
from nubes.functions import events as e
from nubes.functions.controller import Functions
from nubes.functions.deployments import verify
from nubes.functions.spec import FunctionSpec
from nubes.kernel.clock import WallClock
from nubes.kernel.errors import Unavailable, UsageError
from nubes.kernel.message import Event
from nubes.kernel.policy import SEAMS, load


class Sink(Protocol):
    """Whoever waits for a call."""

    def result(self, call: int, status: str, reason: str, output: bytes, released: bool = False) -> None: ...
    def item(self, call: int, output: bytes) -> None: ...
    def printed(self, call: int, function: str, stream: str, text: str) -> None: ...


class ControlPlane:
    """One data folder's control plane. `start` recovers and begins; `close` ends every process and lets go of the
    folder."""

    def __init__(
        self, folder: Path, policies: dict[str, str] | None = None, cpu: float = 0, memory_bytes: int = 0
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.journal = Journal(folder)
        for name in ("objects", "output", "secrets", "volumes", "environments"):
            (folder / name).mkdir(exist_ok=True, mode=0o700)
        self.shared_folder = SharedFolder(self.log_id, folder)
        self.shared = self.shared_folder.path
        self.environments = Environments(folder / "environments")
        self.stores = Stores(folder / "stores.sqlite")
        self.policies = policies or {}
        self.cpu = cpu or float(len(os.sched_getaffinity(0)))
        self.memory_bytes = memory_bytes or int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 0.8)
        self.controller: Functions
        self.clock = WallClock()
        self.now = 0.0
        self.socket = str(folder / "socket")
        self.inputs: dict[int, bytes] = {}  # of calls that are not kept in the log
        self.outputs: dict[int, bytes] = {}
        self.released: set[int] = set()  # calls whose arguments in shared memory nobody reads any more
        self.clients: Counter[int] = Counter()  # process -> its connections
        self.sinks: dict[int, Sink] = {}
        self.watchers: dict[int, list[Sink]] = {}  # who fetches a durable call
        self.prints: Callable[[int, str, str, str], None] = lambda *_: None
        self.started_s = 0.0
        self._observers: dict[type[Any], Callable[[Any], None]] = {}

    @property
    def log_id(self) -> str:
        return hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:12]

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        load()
        self.controller, last = self.journal.recover(loop)
        fresh = not self.journal.log.count
        self.clock = WallClock(last)
        self.now = last
        self.limits = Limits(f"nubes-{self.log_id}")
        self.processes = Processes(
            loop, self.folder, self.shared, self.controller.specs, self.feed, self._instance_frame,
            self.python, self.settings, self.limits, lambda: self.controller.tree.policy.prime,
        )  # fmt: skip
        self._do: dict[type[Any], Callable[[Any], None]] = {
            e.StartInstance: self.processes.start,
            e.StopInstance: self.processes.stop,
            e.Dispatch: self._dispatch,
            e.Interrupt: self.processes.interrupt,
            e.Resolve: self._resolve,
            e.SetTimer: self._set_timer,
            e.GrowNode: self.processes.grow,
            e.PruneNode: self.processes.prune,
        }
        self.started_s = self.clock()
        if not fresh:
            self.feed(e.Restarted())
        self.feed(e.MachineReady(self.cpu, self.memory_bytes))
        for seam, info in SEAMS.items():
            text = self.policies.get(seam) or (info.default if fresh else "")
            if text:
                self.feed(e.PolicySet(seam, text))

    def close(self) -> None:
        self.processes.close()
        self.environments.close()
        self.stores.close()
        self.journal.close()
        self.let_go()

    def let_go(self) -> None:
        """Gives the folder back, whether or not it was ever started."""
        self.journal.let_go()
        self.shared_folder.close()

    # -- the one way in ------------------------------------------------------------------------------------------

    def feed(self, event: Event, at: float = 0.0) -> None:
        """Takes an event: time, log, controller, commands. `at`: not before this time."""
        now = max(self.clock(), at, self.now)
        self.now = now
        self.journal.append(now, event)
        observer = self._observers.get(type(event))
        if observer is not None:
            observer(event)
        do = self._do
        for command in self.controller.handle(event, now):
            do[type(command)](command)

    def observe(self, kind: type[Any], then: Callable[[Any], None]) -> None:
        """Calls `then` with each event of this kind before it is handled, or each command before it is done."""
        where = self._do if kind in self._do else self._observers
        following = where.get(kind)

        def both(one: Any) -> None:
            then(one)
            if following is not None:
                following(one)

        where[kind] = both

    # -- calls ---------------------------------------------------------------------------------------------------

    def submit(self, event: e.Submitted, data: bytes, sink: Sink | None) -> None:
        """A call from outside; `sink` gets what becomes of it. Raises `Unavailable` if it cannot be kept as asked."""
        if event.keep and self.journal.full:
            raise Unavailable(self.journal.full, "Free some space; the call was not accepted.")
        if sink is not None:
            self.sinks[event.call] = sink
        if not event.keep:
            self.inputs[event.call] = data
        self.feed(event)

    def _dispatch(self, command: e.Dispatch) -> None:
        inputs = list(command.inputs)
        keep = bool(inputs)
        if not inputs or not all(inputs):
            kept = inputs or [b""] * len(command.calls)  # empty: not kept in the log, or a call that the clock made
            inputs = [
                self.inputs.get(call) or data or payload.NO_ARGUMENTS
                for call, data in zip(command.calls, kept, strict=True)
            ]
        self.processes.dispatch(command, keep, inputs)

    def _instance_frame(self, instance: int, frame: list[Any]) -> None:
        kind = frame[0]
        if kind == wire.DONE:
            _, id, ok, took, output, pushed, released = frame
            call = self.controller.calls.get(id)
            if released and self.inputs.get(id, b"")[:1] == b"S" and not (call and call.copies):
                self.released.add(id)
            if call is not None and not call.keep:
                if ok and call.route:
                    self.inputs[id] = output  # the next step's input
                else:
                    self.outputs[id] = output
                self.feed(e.Finished(id, instance, ok, took, b"", pushed))
            else:
                self.feed(
                    e.Finished(id, instance, ok, took, output if call is not None else b"", pushed, call is not None)
                )
        elif kind == wire.YIELDED:
            sink = self.sinks.get(frame[1])
            if sink is not None:
                sink.item(frame[1], frame[2])
        elif kind == wire.PRINTED:
            self._printed(instance, frame[1], frame[2], frame[3])
        elif kind == wire.READY:
            self.feed(e.InstanceReady(instance, tuple(frame[1])))
        elif kind == wire.BROKEN:
            self.feed(e.InstanceLost(instance, "it failed to start", frame[1]))

    def _printed(self, instance: int, call: int, stream: str, text: str) -> None:
        process = self.processes.instances.get(instance)
        function = process.function if process else "?"
        self.prints(call, function, stream, text)
        sink = self.sinks.get(call)
        if sink is not None:
            sink.printed(call, function, stream, text)

    def _resolve(self, command: e.Resolve) -> None:
        id = command.call
        self.inputs.pop(id, None)
        output = command.output or self.outputs.pop(id, b"")
        released = id in self.released
        self.released.discard(id)
        sink = self.sinks.pop(id, None)
        watchers = self.watchers.pop(id, ())
        if id in self.controller.results:
            told = [*([sink] if sink else []), *watchers]
            if told:
                self.journal.when_safe(lambda: _tell(told, command, output))
            elif command.status in (e.FAILED, e.TIMED_OUT):
                function = self.controller.results[id].function
                self.prints(id, function, "stderr", unattended.report(id, command.status, command.reason, output))
        elif sink is not None:
            sink.result(id, command.status, command.reason, output, released)

    def watch(self, call: int, sink: Sink) -> bool:
        """Tells `sink` the answer of a durable call, now or later. False if there is no such call."""
        result = self.controller.results.get(call)
        if result is not None:
            self.journal.when_safe(lambda: sink.result(call, result.status, result.reason, result.output))
            return True
        if call in self.controller.calls:
            self.watchers.setdefault(call, []).append(sink)
            return True
        return False

    def unwatch(self, call: int, sink: Sink) -> None:
        watchers = self.watchers.get(call, [])
        if sink in watchers:
            watchers.remove(sink)

    def _set_timer(self, command: e.SetTimer) -> None:
        if command.at < 1e300:
            self.loop.call_later(max(0.0, command.at - self.now), self.feed, e.TimerFired(command.key), command.at)

    # -- functions -----------------------------------------------------------------------------------------------

    def deploy(self, app: str, specs: tuple[FunctionSpec, ...], ephemeral: bool) -> int:
        """Puts an app's functions in place and returns its version."""
        if self.journal.full:
            raise Unavailable(self.journal.full, "Free some space; nothing was deployed.")
        for spec in specs:
            if not spec.name.startswith(f"{app}/"):
                raise UsageError(f"Function {spec.name!r} is not of app {app!r}.")
            verify(spec)
            if spec.environment:
                self.python(spec.environment)
        version = self.controller.apps.get(app, (0, (), False))[0] + 1
        self.feed(e.Deployed(app, version, specs, ephemeral))
        return version

    def python(self, environment: str) -> str:
        """The interpreter of an environment."""
        if not environment:
            return sys.executable
        path = self.environments.python(environment)
        if path is None:
            raise Unavailable(f"Environment {environment} has not been built.", "Deploy the app again.")
        return str(path)

    def settings(self, spec: FunctionSpec) -> tuple[dict[str, str], dict[str, str]]:
        """What an instance of `spec` finds around it: variables with its secrets, and volumes."""
        env = {
            "NUBES_SOCKET": self.socket,
            "NUBES_APP": spec.name.partition("/")[0],
            "NUBES_FUNCTION": spec.name,
        }
        for secret in spec.secrets:
            path = self.folder / "secrets" / f"{secret}.json"
            if path.exists():
                env.update(json.loads(path.read_text()))
        volumes = {}
        for where, name in spec.volumes.items():
            source = self.folder / "volumes" / name
            source.mkdir(exist_ok=True)
            volumes[where] = str(source)
        return env, volumes


def _tell(sinks: list[Sink], command: e.Resolve, output: bytes) -> None:
    for sink in sinks:
        sink.result(command.call, command.status, command.reason, output)
