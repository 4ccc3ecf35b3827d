"""The control plane's end of the process tree: tells parents to fork and to grow, and hears what became of it."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections import deque
from typing import Any, Protocol

from nubes.drivers.local import wire
from nubes.drivers.local.interpreters import Interpreters
from nubes.kernel.errors import NubesError

_ASK_S = 0.005  # a parent is asked for news so long after a child of it has hung up, and then ever more rarely
_ASK_MOST_S = 1.0  # at last so often, as long as it has children


class Tidings(Protocol):
    """Whoever is told what becomes of parents and of what they fork."""

    def forked(self, instance: int, pid: int) -> bool:
        """An instance runs as this process; False if it is known to have ended already."""
        ...

    def exited(self, pid: int, status: int) -> None: ...
    def parked(self, node: int, seconds: float, memory_bytes: int) -> None: ...
    def lost(self, node: int, reason: str) -> None: ...


class Parent:
    """A parked process of the tree, and its control socket."""

    __slots__ = ("asking", "children", "control", "id", "pid", "popen", "queue", "setting", "spec", "wait_s")

    def __init__(self, id: int, control: socket.socket, spec: str, setting: bytes) -> None:
        self.id = id
        self.control = control
        self.spec = spec  # the function it serves alone
        self.setting = setting  # what it was told of that function's setting
        self.pid = 0
        self.popen: subprocess.Popen[bytes] | None = None  # of a root
        self.queue: deque[tuple[bytes, socket.socket | None, int]] = deque()
        self.children: set[int] = set()  # processes that it has not seen end
        self.asking: asyncio.TimerHandle | None = None
        self.wait_s = _ASK_S


class Parents:
    """The parked processes of all trees, by the numbers that the controller gives them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, interpreters: Interpreters, tidings: Tidings) -> None:
        self._loop = loop
        self._interpreters = interpreters
        self._tidings = tidings
        self._parents: dict[int, Parent] = {}

    def pids(self) -> dict[int, int]:
        """The process of each."""
        return {id: parent.pid for id, parent in self._parents.items()}

    def __contains__(self, node: int) -> bool:
        return node in self._parents

    def can_fork(self, id: int, function: str, setting: bytes) -> bool:
        """Whether there is such a parent. One that loaded the function's module under other settings goes."""
        parent = self._parents.get(id)
        if parent is not None and parent.spec == function and parent.setting != setting:
            self._loop.call_soon(self._lost, parent, "its function's variables or secrets have changed")
            return False
        return parent is not None

    def grow(self, id: int, above: int, environment: str, task: tuple[Any, ...]) -> None:
        """Grows a parent below `above`, or as a root (0). `task`: imports, function, its spec, its setting, prime."""
        if above and above not in self._parents:
            self._loop.call_soon(self._tidings.lost, id, "its parent is gone")
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, wire.DATAGRAM_BYTES)
        ours.setblocking(False)
        imports, function, spec, setting, prime = task
        parent = Parent(id, ours, function, setting)
        frame = wire.body(wire.GROW, imports, spec, setting, prime)
        if above:
            self._tell(self._parents[above], frame, theirs)
        else:
            try:
                parent.popen = self._interpreters.start(environment, "node", theirs)
            except (NubesError, OSError) as error:
                reason = f"no process could be started for it: {error}"
                self._loop.call_soon(self._tidings.lost, id, reason)
                return
            parent.pid = parent.popen.pid
            theirs.close()
            self._tell(parent, frame)
        self._parents[id] = parent
        self._loop.add_reader(ours.fileno(), self._readable, parent)

    def fork(self, id: int, instance: int, birth: Any, function: str, spec: bytes, setting: bytes,
             theirs: socket.socket, line: int) -> None:  # fmt: skip
        """Has a parent fork an instance, which gets `theirs` and hangs on `line`."""
        parent = self._parents[id]
        if parent.spec == function:  # it is prepared for just this
            spec = setting = b""
        self._tell(parent, wire.body(wire.FORK, instance, birth, spec, setting), theirs, line)

    def prune(self, id: int) -> None:
        parent = self._parents.pop(id, None)
        if parent is not None:
            self._close(parent)

    def close(self) -> None:
        for parent in self._parents.values():
            self._loop.remove_reader(parent.control.fileno())
            parent.control.close()

    # -- talking -------------------------------------------------------------------------------------------------

    def _tell(self, parent: Parent, data: bytes, theirs: socket.socket | None = None, line: int = -1) -> None:
        parent.queue.append((data, theirs, line))
        if len(parent.queue) == 1:
            self._drain(parent)

    def _drain(self, parent: Parent, waited: bool = False) -> None:
        while parent.queue:
            data, theirs, line = parent.queue[0]
            fds = (theirs.fileno(), *([line] if line >= 0 else [])) if theirs is not None else ()
            try:
                wire.send_with_fds(parent.control, data, fds)
            except BlockingIOError:
                self._loop.add_writer(parent.control.fileno(), self._drain, parent, True)
                return
            except OSError:
                break  # it is gone; the reader will notice
            if theirs is not None:
                theirs.close()
            parent.queue.popleft()
        if waited:
            self._loop.remove_writer(parent.control.fileno())

    def _readable(self, parent: Parent) -> None:
        try:
            data, _ = wire.recv_with_fds(parent.control)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost(parent, "its process ended")
            return
        frame = wire.unbody(data)
        if frame[0] == wire.NEWS:
            self._news(parent, frame[1])
        elif frame[0] == wire.PARKED:
            parent.pid = frame[1]
            self._tidings.parked(parent.id, frame[2], frame[3])
        elif frame[0] == wire.FAILED_TO_GROW:
            self._lost(parent, frame[1])

    def _news(self, parent: Parent, news: list[list[int]]) -> None:
        for kind, one, other in news:
            if kind == wire.FORKED:
                parent.children.add(other)
                if not self._tidings.forked(one, other):
                    self.ask(parent.id)
            else:
                parent.children.discard(one)
                self._tidings.exited(one, other)
        if parent.children and parent.asking is None:
            self._ask_in(parent, _ASK_MOST_S)

    def ask(self, id: int) -> None:
        """Soon learns how a child of this parent has ended, which has hung up."""
        parent = self._parents.get(id)
        if parent is not None and (parent.asking is None or parent.wait_s > _ASK_S):
            if parent.asking is not None:
                parent.asking.cancel()
            self._ask_in(parent, _ASK_S)

    def _ask_in(self, parent: Parent, wait_s: float) -> None:
        parent.wait_s = wait_s
        parent.asking = self._loop.call_later(wait_s, self._ask, parent)

    def _ask(self, parent: Parent) -> None:
        parent.asking = None
        if parent.id in self._parents and parent.children:
            self._tell(parent, wire.body(wire.REAP))
            self._ask_in(parent, min(2 * parent.wait_s, _ASK_MOST_S))

    def _lost(self, parent: Parent, reason: str) -> None:
        if self._parents.pop(parent.id, None) is not None:
            self._close(parent)
            self._tidings.lost(parent.id, reason)

    def _close(self, parent: Parent) -> None:
        self._loop.remove_reader(parent.control.fileno())
        self._loop.remove_writer(parent.control.fileno())
        for _, theirs, _ in parent.queue:
            if theirs is not None:
                theirs.close()  # an instance that was asked for and will not come: its peer sees the end
        parent.queue.clear()
        parent.control.close()
        if parent.popen is not None:
            self._reap(parent.popen)

    def _reap(self, popen: subprocess.Popen[bytes]) -> None:
        if popen.poll() is None:
            self._loop.call_later(0.1, self._reap, popen)
