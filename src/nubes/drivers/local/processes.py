"""Instances and parents as processes of this machine: does what the controller commands and reports what became of
it."""

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
from nubes.drivers.local.limits import Limits
from nubes.drivers.local.peer import Peer
from nubes.functions import events as e
from nubes.functions.spec import FunctionSpec
from nubes.kernel.errors import NubesError
from nubes.kernel.units import show_bytes

GRACE_S = 30.0  # how long an instance's exit hooks may take
_STATUS_S = 0.5  # how long a parent may take to say how its child ended
_LINGER_S = 0.1  # how long an ended instance's socket is still read

_encode_spec = msgspec.msgpack.Encoder().encode


class Process:
    """A running, starting or ending instance."""

    __slots__ = ("doomed", "ended", "function", "group", "id", "node", "peer", "pid", "popen", "status")

    def __init__(self, id: int, function: str, node: int, group: str) -> None:
        self.id = id
        self.function = function
        self.node = node
        self.group = group
        self.pid = 0
        self.peer: Peer | None = None
        self.popen: subprocess.Popen[bytes] | None = None
        self.status: int | None = None
        self.doomed = ""  # why the control plane ends it
        self.ended = False


class Parent:
    """A parked process of the tree and its control socket."""

    __slots__ = ("control", "id", "pid", "popen", "queue", "spec")

    def __init__(self, id: int, control: socket.socket) -> None:
        self.id = id
        self.control = control
        self.pid = 0
        self.popen: subprocess.Popen[bytes] | None = None
        self.queue: deque[tuple[bytes, list[socket.socket]]] = deque()
        self.spec = ""


class Processes:
    """`report` takes events for the controller, `stream` takes (call, kind, data) that pass it by, `specs` are the
    functions."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        folder: Path,
        shared: Path,
        specs: Mapping[str, FunctionSpec],
        report: Callable[[Any], None],
        on_instance_frame: Callable[[int, list[Any]], None],
        python: Callable[[str], str],
        settings: Callable[[FunctionSpec], dict[str, Any]],
        limits: Limits,
        prime: Callable[[], bool],
    ) -> None:
        self.loop = loop
        self.folder = folder
        self._shared = str(shared)  # as text: paths are put together at every start
        self._objects = str(folder / "objects")
        self._output = str(folder / "output")
        self.specs = specs
        self.report = report
        self.on_instance_frame = on_instance_frame
        self.python = python
        self.settings = settings
        self.limits = limits
        self.prime = prime
        self.instances: dict[int, Process] = {}
        self.by_pid: dict[int, Process] = {}
        self.parents: dict[int, Parent] = {}
        # Every process group we start holds this open; when we are gone, the kernel ends them all.
        self._lifeline = f"{shared}/lifeline"
        os.mkfifo(self._lifeline, 0o600)
        self._lifeline_fd = os.open(self._lifeline, os.O_RDWR | os.O_NONBLOCK)
        (folder / "output").mkdir(exist_ok=True)
        self.watchdog = watchdog.Watchdog(lambda: self.by_pid, self._too_many)
        self._watch()

    # -- commands ------------------------------------------------------------------------------------------------

    def start(self, command: e.StartInstance) -> None:
        spec = self.specs.get(command.function[: len(command.function) - len(command.variant)])
        parent = self.parents.get(command.node)
        if spec is None or (command.node and parent is None):
            self.loop.call_soon(self.report, e.InstanceLost(command.instance, "its parent in the process tree is gone"))
            return
        process = Process(
            command.instance, spec.name, command.node, self.limits.take(spec.cpu_limit, spec.memory_limit_bytes)
        )
        self.instances[process.id] = process
        ours, theirs = socket.socketpair()
        process.peer = Peer(self.loop, ours, lambda frame: self._frame(process, frame), lambda: self._hung_up(process))
        setting = self._setting(spec, command, process.group)
        if parent is None:
            try:
                process.popen = self._spawn(spec.environment, "instance", theirs)
            except (NubesError, OSError) as error:
                process.doomed = f"no process could be started for it: {error}"
                theirs.close()  # its peer sees the end
                return
            process.pid = process.popen.pid
            self.by_pid[process.pid] = process
            self._await_exit(process, process.popen)
            process.peer.send(wire.pack(_encode_spec(spec), setting))
            theirs.close()
        else:
            own = b"" if parent.spec == spec.name else _encode_spec(spec)
            self._tell(parent, wire.body(wire.FORK, process.id, own, setting), [theirs])

    def _setting(self, spec: FunctionSpec, command: e.StartInstance, group: str) -> dict[str, Any]:
        return {
            "started": time.monotonic(),
            "lifeline": self._lifeline,
            "shared": self._shared,
            "objects": self._objects,
            "limits": self.limits.plan(group, spec.cpu_limit, spec.memory_limit_bytes),
            "output": f"{self._output}/{spec.name.replace('/', '.')}.log",
            "variant": _variant(command.variant),
            "asgi": spec.web is not None and spec.web.kind == "asgi",
            **self.settings(spec),
        }

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
            process.peer.send(wire.pack(wire.STOP))
            self.loop.call_later(GRACE_S, self._kill, process)

    def grow(self, command: e.GrowNode) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        ours.setblocking(False)
        node = Parent(command.node, ours)
        spec = self.specs.get(command.function)
        packed = _encode_spec(spec) if spec else b""
        if command.parent:
            above = self.parents.get(command.parent)
            if above is None:
                self.loop.call_soon(self.report, e.NodeLost(command.node, "its parent is gone"))
                return
            self._tell(above, wire.body(wire.GROW, command.imports, packed, self.prime()), [theirs])
        else:
            try:
                node.popen = self._spawn(command.environment, "node", theirs)
            except (NubesError, OSError) as error:
                self.loop.call_soon(
                    self.report, e.NodeLost(command.node, f"no process could be started for it: {error}")
                )
                return
            node.pid = node.popen.pid
            theirs.close()
            self._tell(node, wire.body(wire.GROW, command.imports, packed, self.prime()), [])
        node.spec = command.function
        self.parents[node.id] = node
        self.loop.add_reader(ours.fileno(), self._parent_readable, node)

    def prune(self, command: e.PruneNode) -> None:
        node = self.parents.pop(command.node, None)
        if node is not None:
            self._close_parent(node)

    # -- processes -----------------------------------------------------------------------------------------------

    def _spawn(self, environment: str, module: str, theirs: socket.socket) -> subprocess.Popen[bytes]:
        """A fresh interpreter, in a process group of its own that the kernel ends with the control plane."""
        argv = [
            self.python(environment),
            "-P",
            "-m",
            f"nubes.drivers.local.{module}",
            str(theirs.fileno()),
            self._lifeline,
        ]
        output = os.open(self.folder / "output" / "nubes.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        env = dict(os.environ)
        paths = env.pop("PYTHONPATH", "")
        if environment:  # sees its own packages alone; nubes is linked into it
            env["PATH"] = f"{Path(argv[0]).parent}{os.pathsep}{env.get('PATH', os.defpath)}"
        else:
            env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[3]), paths]))
        try:
            return subprocess.Popen(
                argv, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env
            )
        finally:
            os.close(output)

    def _tell(self, parent: Parent, data: bytes, sockets: list[socket.socket]) -> None:
        parent.queue.append((data, sockets))
        if len(parent.queue) == 1:
            self._drain(parent)

    def _drain(self, parent: Parent) -> None:
        while parent.queue:
            data, sockets = parent.queue[0]
            try:
                wire.send_with_fds(parent.control, data, [s.fileno() for s in sockets])
            except BlockingIOError:
                self.loop.add_writer(parent.control.fileno(), self._drain, parent)
                return
            except OSError:
                break  # it is gone; the reader will notice
            for sock in sockets:
                sock.close()
            parent.queue.popleft()
        self.loop.remove_writer(parent.control.fileno())

    def _parent_readable(self, node: Parent) -> None:
        while True:
            try:
                data, _ = wire.recv_with_fds(node.control, 0)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._parent_lost(node, "its process ended")
                return
            frame = wire.unbody(data)
            if frame[0] == wire.FORKED:
                self._forked(frame[1], frame[2])
            elif frame[0] == wire.EXITED:
                self._exited(frame[1], frame[2])
            elif frame[0] == wire.PARKED:
                node.pid = frame[1]
                self.report(e.NodeReady(node.id, frame[2], frame[3]))
            elif frame[0] == wire.FAILED_TO_GROW:
                self._parent_lost(node, frame[1])
                return

    def _parent_lost(self, node: Parent, reason: str) -> None:
        if self.parents.pop(node.id, None) is not None:
            self._close_parent(node)
            self.report(e.NodeLost(node.id, reason))

    def _close_parent(self, node: Parent) -> None:
        self.loop.remove_reader(node.control.fileno())
        self.loop.remove_writer(node.control.fileno())
        for _, sockets in node.queue:
            for sock in sockets:
                sock.close()  # instances that were asked for and will not come: their peers see the end
        node.queue.clear()
        node.control.close()
        if node.popen is not None:
            self._reap_later(node.popen)

    def _reap_later(self, popen: subprocess.Popen[bytes]) -> None:
        if popen.poll() is None:
            self.loop.call_later(0.1, self._reap_later, popen)

    def _forked(self, id: int, pid: int) -> None:
        process = self.instances.get(id)
        if process is None:
            return
        process.pid = pid
        self.by_pid[pid] = process
        if process.doomed:
            self._kill(process)

    def _exited(self, pid: int, status: int) -> None:
        process = self.by_pid.pop(pid, None)
        if process is not None:
            process.status = status
            if process.peer is not None and process.peer.closed:
                self._end(process)
            else:  # what it still said is read first; its socket may never close, if a child of it holds it
                self.loop.call_later(_LINGER_S, self._end, process)

    def _kill(self, process: Process) -> None:
        if process.ended:
            return
        if process.pid:
            watchdog.end_group(process.pid)
        if process.group:
            self.limits.kill(process.group)

    def _watch(self) -> None:
        self.watchdog.look()
        self.loop.call_later(watchdog.CHECK_S, self._watch)

    def _too_many(self, pid: int, tasks: int) -> None:
        process = self.by_pid.get(pid)
        if process is not None:
            allowed = f"more than the {watchdog.MAX_TASKS} an instance may have"
            process.doomed = f"it had {tasks} processes and threads, {allowed}, and was killed"

    def _frame(self, process: Process, frame: list[Any]) -> None:
        if not process.ended:
            self.on_instance_frame(process.id, frame)

    def _hung_up(self, process: Process) -> None:
        """The socket closed: wait a moment to learn how the process ended, then report it."""
        known = process.status is not None or (process.doomed and process.popen is None)
        if known or (process.node and process.node not in self.parents):
            self._end(process)
        else:
            self.loop.call_later(_STATUS_S if process.popen is None else GRACE_S, self._end, process)

    def _await_exit(self, process: Process, popen: subprocess.Popen[bytes]) -> None:
        """Has a process that is our own child reported when it ends."""
        watch = os.pidfd_open(popen.pid)

        def ended() -> None:
            self.loop.remove_reader(watch)
            os.close(watch)
            self._exited(popen.pid, popen.wait())

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
        for node in self.parents.values():
            self.loop.remove_reader(node.control.fileno())
            node.control.close()
        os.close(self._lifeline_fd)
        self.limits.close()


def _variant(text: str) -> bytes:
    return bytes.fromhex(text[1:]) if text else b""
