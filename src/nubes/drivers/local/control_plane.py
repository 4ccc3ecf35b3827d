"""The control plane on this machine: log, controller, processes and clients on one event loop."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import os
import pickle
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import nubes
from nubes.drivers.local import payload, retention, unattended, wire
from nubes.drivers.local.environments import Environments
from nubes.drivers.local.limits import Limits
from nubes.drivers.local.logstore import LogStore
from nubes.drivers.local.processes import Processes
from nubes.drivers.local.shared_folder import SharedFolder
from nubes.drivers.local.stores import Stores
from nubes.functions import events as e
from nubes.functions.controller import Functions
from nubes.functions.deployments import verify
from nubes.functions.spec import FunctionSpec
from nubes.kernel.clock import WallClock
from nubes.kernel.errors import LogCorrupt, NubesError, Unavailable, UnknownPolicy, UsageError
from nubes.kernel.log import Log
from nubes.kernel.message import Codec, Event
from nubes.kernel.policy import SEAMS, load

WRITE_S = 0.05  # how long a record that nobody waits for may stay in memory
SNAPSHOT_RECORDS = 200_000  # how many records between snapshots


_Safe = tuple[Callable[[], None], Callable[[str], None] | None]


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
        self.log = Log(folder / "log")
        for name in ("objects", "output", "secrets", "volumes", "environments"):
            (folder / name).mkdir(exist_ok=True, mode=0o700)
        self.shared_folder = SharedFolder(self.log_id, folder)
        self.shared = self.shared_folder.path
        self.environments = Environments(folder / "environments")
        self.stores = Stores(folder / "stores.sqlite")
        self.policies = policies or {}
        self.cpu = cpu or float(len(os.sched_getaffinity(0)))
        self.memory_bytes = memory_bytes or int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 0.8)
        self.codec = Codec(e.EVENTS)
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
        self.flushed: Callable[[float], None] = lambda _: None  # told how long each flush of the log took
        self.flushing_since_s = 0.0  # by the loop's clock; 0: no flush is under way
        self.running: dict[int, str] = {}  # instance -> function, for labels
        self.started_s = 0.0
        self.full = ""  # why nothing can be written, while nothing can
        self._observers: dict[type[Any], Callable[[Any], None]] = {}
        self._unsynced: list[_Safe] = []
        self._syncing = False
        self._write_later = False
        self._snapshot_at = 0

    @property
    def log_id(self) -> str:
        return hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:12]

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        load()
        fresh = self._recover()
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
        self.feed(e.CapacitySet(self.cpu, self.memory_bytes))
        for seam, info in SEAMS.items():
            text = self.policies.get(seam) or (info.default if fresh else "")
            if text:
                self.feed(e.PolicySet(seam, text))

    def _recover(self) -> bool:
        """Folds the log; True if there was nothing in it."""
        start = self._restore()
        last = 0.0
        for record in self.log.records(start):
            last, event = self.codec.decode(record)
            try:
                self.controller.handle(event, last)
            except UnknownPolicy as error:
                raise self._missing(error.message) from error
        self.clock = WallClock(last)
        self.now = last
        self._snapshot_at = self.log.count
        return self.log.count == 0

    def _restore(self) -> int:
        """The newest state, and the record to go on from. A state of other code is made anew from the whole log."""
        if self.log.snapshot is not None:
            version, _, state = self.log.snapshot.partition(b"\n")
            if version == _code_version() or self.log.first > 0:
                try:
                    self.controller = pickle.loads(state)
                    return self.log.snapshot_at
                except Exception as error:
                    if self.log.first > 0:
                        if version == _code_version() and isinstance(error, ImportError | AttributeError):
                            raise self._missing(f"{error}.") from error
                        raise LogCorrupt(
                            f"The state in {self.folder} was made by another version of nubes ({error!r}).",
                            "Start that version once more, or begin with an empty data folder.",
                        ) from None
        self.controller = Functions()
        return self.log.first

    def _missing(self, what: str) -> UnknownPolicy:
        return UnknownPolicy(
            f"A policy that decided for {self.folder} is not installed any more: {what}",
            "Install the package it came with again, then start again: nothing is lost. Or choose another folder with "
            "--data.",
        )

    def close(self) -> None:
        self.processes.close()
        self.environments.close()
        self.stores.close()
        self._snapshot()
        self.let_go()

    def let_go(self) -> None:
        """Gives the folder back, whether or not it was ever started."""
        self.log.close()
        self.shared_folder.close()

    # -- the one way in ------------------------------------------------------------------------------------------

    def feed(self, event: Event, at: float = 0.0) -> None:
        """Takes an event: time, log, controller, commands. `at`: not before this time."""
        now = max(self.clock(), at, self.now)
        self.now = now
        self.log.append(self.codec.encode(now, event))
        if not self._write_later:
            self._write_later = True
            self.loop.call_later(WRITE_S, self._write)
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

    def when_safe(self, then: Callable[[], None], otherwise: Callable[[str], None] | None = None) -> None:
        """Calls `then` once everything fed so far would survive a power cut. Many share one flush.

        If that cannot be had now, `otherwise` is told why; without it, `then` waits until it can.
        """
        self._unsynced.append((then, otherwise))
        if not self._syncing:
            self._syncing = True
            self.loop.call_soon(self._begin_sync)

    def _write(self) -> None:
        self._write_later = False
        try:
            self.log.write()
            self.full = ""
        except OSError as error:
            self._cannot_write(error)
        if self.log.count - self._snapshot_at > SNAPSHOT_RECORDS:
            self._snapshot()

    def _cannot_write(self, error: OSError) -> None:
        if not self.full:
            self.full = f"The log in {self.folder} cannot be written: {error.strerror}."
            complain(f"{self.full} Free some space; nothing accepted is lost.")
        if not self._write_later:
            self._write_later = True
            self.loop.call_later(1.0, self._write)

    def _begin_sync(self) -> None:
        waiting, self._unsynced = self._unsynced, []
        try:
            self.log.write()
            self.full = ""
        except OSError as error:
            self._cannot_write(error)
            self._unsynced = [(then, None) for then, otherwise in waiting if otherwise is None]
            for _, otherwise in waiting:
                if otherwise is not None:
                    otherwise(self.full)
            self.loop.call_later(0.2, self._begin_sync)
            return
        self.flushing_since_s = self.loop.time()
        future = self.loop.run_in_executor(None, self.log.sync)
        future.add_done_callback(lambda done: self._synced(done, waiting))

    def _synced(self, done: asyncio.Future[None], waiting: list[_Safe]) -> None:
        self.flushed(self.loop.time() - self.flushing_since_s)
        self.flushing_since_s = 0.0
        if done.cancelled() or done.exception() is not None:
            self._unsynced = waiting + self._unsynced
        else:
            for then, _ in waiting:
                then()
        if self._unsynced:
            self.loop.call_soon(self._begin_sync)
        else:
            self._syncing = False

    def _snapshot(self) -> None:
        try:
            state = _code_version() + b"\n" + pickle.dumps(self.controller, 5)
            self.log.save_snapshot(state, keep_segments=not retention.log_is_large(self.folder / "log"))
            self._snapshot_at = self.log.count
            retention.sweep(self.folder / "objects", self.controller)
        except OSError as error:
            self._cannot_write(error)

    # -- calls ---------------------------------------------------------------------------------------------------

    def submit(self, event: e.Submitted, data: bytes, sink: Sink | None) -> None:
        """A call from outside; `sink` gets what becomes of it. Raises `Unavailable` if it cannot be kept as asked."""
        if event.keep and self.full:
            raise Unavailable(self.full, "Free some space; the call was not accepted.")
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
            if released and self.inputs.get(id, b"")[:1] == b"S":
                self.released.add(id)
            call = self.controller.calls.get(id)
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
                self.when_safe(lambda: _tell(told, command, output))
            elif command.status in (e.FAILED, e.TIMED_OUT):
                function = self.controller.results[id].function
                self.prints(id, function, "stderr", unattended.report(id, command.status, command.reason, output))
        elif sink is not None:
            sink.result(id, command.status, command.reason, output, released)

    def watch(self, call: int, sink: Sink) -> bool:
        """Tells `sink` the answer of a durable call, now or later. False if there is no such call."""
        result = self.controller.results.get(call)
        if result is not None:
            self.when_safe(lambda: sink.result(call, result.status, result.reason, result.output))
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
        if self.full:
            raise Unavailable(self.full, "Free some space; nothing was deployed.")
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


@functools.cache
def _code_version() -> bytes:
    """One word for the code that a state is the fold of."""
    digest = hashlib.sha256(nubes.__version__.encode())
    for package in ("kernel", "functions"):
        for path in sorted((Path(nubes.__file__).parent / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16].encode()


def complain(text: str) -> None:
    """Says something on standard error, which may itself be on the full disk that is complained about."""
    try:
        print(f"nubes: {text}", file=sys.stderr, flush=True)
    except OSError:
        pass


def _tell(sinks: list[Sink], command: e.Resolve, output: bytes) -> None:
    for sink in sinks:
        sink.result(command.call, command.status, command.reason, output)


def run(folder: Path, policies: dict[str, str], *, cpu: float = 0, memory_bytes: int = 0, watch_fd: int = -1,
        ready_fd: int = -1, also: Callable[[ControlPlane], Any] | None = None) -> None:  # fmt: skip
    """Serves until told to stop by SIGTERM or SIGINT, or, embedded, until `watch_fd` closes. `also` starts beside
    it."""
    try:
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    except ImportError:  # not on every platform
        runner = asyncio.Runner()
    with runner:
        runner.run(_serve(folder, policies, cpu, memory_bytes, watch_fd, ready_fd, also))


async def _serve(folder: Path, policies: dict[str, str], cpu: float, memory_bytes: int, watch_fd: int, ready_fd: int,
                 also: Callable[[ControlPlane], Any] | None) -> None:  # fmt: skip
    from nubes.drivers.local.sessions import listen

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    plane = ControlPlane(folder, policies, cpu, memory_bytes)
    try:
        plane.start(loop)
    except BaseException:
        plane.let_go()
        raise
    printed = LogStore(folder / "logs", loop, plane.clock)
    plane.prints = printed.add
    listener = listen(plane, stop)
    for finding in plane.log.findings:
        complain(finding)
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    if watch_fd >= 0:
        loop.add_reader(watch_fd, stop.set)
    companion = also(plane) if also is not None else None
    if companion is not None:
        companion = await companion
    if ready_fd >= 0:
        os.write(ready_fd, b"1")
        os.close(ready_fd)
    try:
        await stop.wait()
    finally:
        if companion is not None:
            await companion.close()
        listener.close()
        (folder / "socket").unlink(missing_ok=True)
        plane.close()
        printed.close()


def main() -> None:
    """`python -m nubes.drivers.local.control_plane FOLDER WATCH_FD READY_FD [SEAM=POLICY ...]`: an embedded control
    plane."""
    folder, watch_fd, ready_fd = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    policies = dict(pair.split("=", 1) for pair in sys.argv[4:])
    try:
        run(folder, policies, watch_fd=watch_fd, ready_fd=ready_fd)
    except NubesError as error:
        print(str(error), file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
