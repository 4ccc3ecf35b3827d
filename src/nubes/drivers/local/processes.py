"""Instances as processes of this machine: does what the controller commands and reports what became of it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from nubes.drivers.local import watchdog, wire
from nubes.drivers.local.interpreters import Interpreters
from nubes.drivers.local.lifeline import Lifeline
from nubes.drivers.local.limits import Limits
from nubes.drivers.local.parents import Parents
from nubes.drivers.local.peer import Peer
from nubes.drivers.local.setting import Birth, Setting
from nubes.functions import events as e
from nubes.functions.spec import FunctionSpec
from nubes.kernel.errors import NubesError
from nubes.kernel.units import show_bytes

GRACE_S = 30.0  # how long an instance's exit hooks may take
_STATUS_S = 0.5  # how long a parent may take to say how its child ended
_LINGER_S = 0.1  # how long an ended instance's socket is still read

_encode = msgspec.msgpack.Encoder().encode


class Process:
    """A running, starting or ending instance."""

    __slots__ = (
        "brief",
        "doomed",
        "ended",
        "function",
        "group",
        "id",
        "line",
        "node",
        "peer",
        "pid",
        "popen",
        "status",
    )

    def __init__(self, id: int, spec: FunctionSpec, node: int, group: str) -> None:
        self.id = id
        self.function = spec.name
        self.brief = spec.single_use  # ends by itself after a call
        self.node = node
        self.group = group
        self.line = -1  # what its group hangs on, if a parent forked it
        self.pid = 0
        self.peer: Peer | None = None
        self.popen: subprocess.Popen[bytes] | None = None
        self.status: int | None = None
        self.doomed = ""  # why the control plane ends it
        self.ended = False


class Processes:
    """`report` takes events for the controller, `on_instance_frame` takes (instance, frame), `specs` are the functions,
    `settings` gives the variables and the volumes of one."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        folder: Path,
        shared: Path,
        specs: Mapping[str, FunctionSpec],
        report: Callable[[Any], None],
        on_instance_frame: Callable[[int, list[Any]], None],
        python: Callable[[str], str],
        settings: Callable[[FunctionSpec], tuple[dict[str, str], dict[str, str]]],
        limits: Limits,
        prime: Callable[[], bool],
        objects: str,
    ) -> None:
        self.loop = loop
        self._shared = str(shared)  # as text: paths are put together at every start
        self._objects = objects
        self._output = str(folder / "output")
        self.specs = specs
        self.report = report
        self.on_instance_frame = on_instance_frame
        self.settings = settings
        self.limits = limits
        self.prime = prime
        self.instances: dict[int, Process] = {}
        self.by_pid: dict[int, Process] = {}
        self._ending: deque[tuple[float, Process]] = deque()  # who was told to stop, and until when
        (folder / "output").mkdir(exist_ok=True)
        self._lifeline = Lifeline(f"{shared}/lifeline")
        self.interpreters = Interpreters(folder / "output", self._lifeline.path, python)
        self.parents = Parents(loop, self.interpreters, self)
        self.watchdog = watchdog.Watchdog(lambda: self.by_pid, self._too_many)
        self._watch()

    # -- commands ------------------------------------------------------------------------------------------------

    def start(self, command: e.StartInstance) -> None:
        spec = self.specs.get(command.function[: len(command.function) - len(command.variant)])
        setting = _encode(self._setting(spec)) if spec is not None else b""
        if spec is None or (command.node and not self.parents.can_fork(command.node, spec.name, setting)):
            self.loop.call_soon(self.report, e.InstanceLost(command.instance, "its parent in the process tree is gone"))
            return
        group = self.limits.take(spec.cpu_limit, spec.memory_limit_bytes)
        process = Process(command.instance, spec, command.node, group)
        self.instances[process.id] = process
        ours, theirs = socket.socketpair()
        process.peer = Peer(self.loop, ours, lambda frame: self._frame(process, frame), lambda: self._hung_up(process))
        plan = self.limits.plan(group, spec.cpu_limit, spec.memory_limit_bytes)
        birth = Birth(time.monotonic(), plan, bytes.fromhex(command.variant[1:]))
        packed = _encode(spec)
        if command.node:
            process.line = self._lifeline.take()
            self.parents.fork(command.node, process.id, birth, spec.name, packed, setting, theirs, process.line)
            return
        try:
            process.popen = self.interpreters.start(spec.environment, "instance", theirs)
        except (NubesError, OSError) as error:
            process.doomed = f"no process could be started for it: {error}"
            theirs.close()  # its peer sees the end
            return
        process.pid = process.popen.pid
        self.by_pid[process.pid] = process
        self._await_exit(process.popen)
        process.peer.send(wire.pack(packed, setting, birth))
        theirs.close()

    def _setting(self, spec: FunctionSpec) -> Setting:
        env, volumes = self.settings(spec)
        output = f"{self._output}/{spec.name.replace('/', '.')}.log"
        return Setting(self._shared, self._objects, output, env, volumes)

    def dispatch(self, command: e.Dispatch, keep: bool, inputs: list[bytes]) -> None:
        process = self.instances.get(command.instance)
        if process is not None and process.peer is not None:
            process.peer.send(wire.pack(wire.RUN, command.calls, command.method, command.hop, keep, inputs))

    def interrupt(self, command: e.Interrupt) -> None:
        process = self.instances.get(command.instance)
        if process is not None and process.peer is not None:
            process.peer.send(wire.pack(wire.INTERRUPT, command.call))

    def stop(self, command: e.StopInstance) -> None:
        process = self.instances.get(command.instance)
        if process is None or process.ended:
            return
        process.doomed = command.reason
        if command.kill:
            self._kill(process)
        elif process.peer is not None:
            if not process.brief:
                process.peer.send(wire.pack(wire.STOP))
            self._ending.append((self.loop.time() + GRACE_S, process))

    def grow(self, command: e.GrowNode) -> None:
        spec = self.specs.get(command.function)
        own = (_encode(spec), _encode(self._setting(spec))) if spec else (b"", b"")
        task = (command.imports, command.function, *own, self.prime())
        self.parents.grow(command.node, command.parent, command.environment, task)

    def prune(self, command: e.PruneNode) -> None:
        self.parents.prune(command.node)

    def drained(self, command: e.Drained) -> None:
        """Nothing is to be done: this machine goes when the control plane does."""

    def function_of(self, instance: int) -> str:
        process = self.instances.get(instance)
        return process.function if process else ""

    # -- what parents tell ---------------------------------------------------------------------------------------

    def parked(self, node: int, seconds: float, memory_bytes: int) -> None:
        self.report(e.NodeReady(node, seconds, memory_bytes))

    def lost(self, node: int, reason: str) -> None:
        self.report(e.NodeLost(node, reason))

    def forked(self, instance: int, pid: int) -> bool:
        process = self.instances.get(instance)
        if process is None:
            return False
        process.pid = pid
        self.by_pid[pid] = process
        if process.doomed:
            self._kill(process)
        return process.peer is not None and not process.peer.closed

    def exited(self, pid: int, status: int) -> None:
        process = self.by_pid.pop(pid, None)
        if process is not None:
            process.status = status
            if process.peer is not None and process.peer.closed:
                self._end(process)
            else:  # what it still said is read first; its socket may never close, if a child of it holds it
                self.loop.call_later(_LINGER_S, self._end, process)

    # -- instances -----------------------------------------------------------------------------------------------

    def _kill(self, process: Process) -> None:
        if process.ended:
            return
        if process.pid:
            watchdog.end_group(process.pid)
        if process.group:
            self.limits.kill(process.group)

    def _watch(self) -> None:
        self.watchdog.look()
        now = self.loop.time()
        while self._ending and (self._ending[0][0] <= now or self._ending[0][1].ended):
            self._kill(self._ending.popleft()[1])
        self.loop.call_later(watchdog.CHECK_S, self._watch)

    def _too_many(self, pid: int, tasks: int) -> None:
        process = self.by_pid.get(pid)
        if process is not None:
            allowed = f"more than the {watchdog.MAX_TASKS} an instance may have"
            process.doomed = f"it had {tasks} processes and threads, {allowed}, and was killed"

    def _frame(self, process: Process, frame: list[Any]) -> None:
        if process.ended:
            return
        if frame[0] == wire.READY and not process.pid:  # its parent has yet to say whom it forked
            process.pid = frame[2]
            self.by_pid[process.pid] = process
        self.on_instance_frame(process.id, frame)

    def _hung_up(self, process: Process) -> None:
        """The socket closed: wait a moment to learn how the process ended, then report it."""
        self.parents.ask(process.node)
        known = process.status is not None or (process.doomed and process.popen is None)
        if known or (process.node and process.node not in self.parents):
            self._end(process)
        else:
            self.loop.call_later(_STATUS_S if process.popen is None else GRACE_S, self._end, process)

    def _await_exit(self, popen: subprocess.Popen[bytes]) -> None:
        """Has a process that is our own child reported when it ends."""
        watch = os.pidfd_open(popen.pid)

        def ended() -> None:
            self.loop.remove_reader(watch)
            os.close(watch)
            self.exited(popen.pid, popen.wait())

        self.loop.add_reader(watch, ended)

    def _end(self, process: Process) -> None:
        if process.ended:
            return
        reason = process.doomed or self._reason(process)
        self._kill(process)
        process.ended = True
        if process.peer is not None:
            process.peer.close()
        self.by_pid.pop(process.pid, None)
        if process.line >= 0:
            self._lifeline.give_back(process.line)
        if process.group and self.limits.out_of_memory(process.group):
            self.limits.retire(process.group)
        else:
            self.limits.give_back(process.group)
        del self.instances[process.id]
        self.report(e.InstanceLost(process.id, reason))

    def _reason(self, process: Process) -> str:
        if process.status is None:
            return "its process ended"
        if process.status < 0:
            name = signal.Signals(-process.status).name
            if process.group and self.limits.out_of_memory(process.group):
                limit = self.specs[process.function].memory_limit_bytes if process.function in self.specs else 0
                return f"it used more memory than its limit of {show_bytes(limit)} and was killed"
            return f"its process was ended by {name}"
        return f"its process exited with code {process.status}"

    def close(self) -> None:
        """Ends everything at once."""
        for process in list(self.instances.values()):
            self._kill(process)
        self.parents.close()
        self._lifeline.close()
        self.limits.close()
