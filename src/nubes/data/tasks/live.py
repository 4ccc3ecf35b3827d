"""Task graphs on worker processes of this machine: the driver's end."""

from __future__ import annotations

import atexit
import itertools
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from nubes.data.tasks import events as e
from nubes.data.tasks import session
from nubes.data.tasks import worker as w
from nubes.data.tasks.controller import Tasks
from nubes.data.tasks.models import Work
from nubes.data.tasks.session import ObjectRef, Session, Spec
from nubes.data.tasks.spec import DRIVER, Task
from nubes.drivers.local import payload, wire
from nubes.drivers.local.lifeline import Lifeline
from nubes.drivers.local.shared_folder import SharedFolder
from nubes.kernel.clock import WallClock
from nubes.kernel.errors import InstanceDied, Unavailable, UsageError

T = TypeVar("T")

PLACEMENT = "bottom-up(threshold=1)"  # a worker has one CPU: the next one is nearer than the end of its queue
AHEAD_S = 0.02  # what a worker has to do before it hears of more
DEATHS = 4  # workers that a task may take with it

_pools = itertools.count()


class Wait:
    """Somebody waits for objects. `tell` is called once for each that is there, or gone."""

    def __init__(self, ids: Sequence[str], tell: Callable[[str], None]) -> None:
        self.ids = ids
        self.tell = tell


class Process:
    """A worker, as the driver knows it."""

    def __init__(self, node: int, popen: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self.node = node
        self.popen = popen
        self.sock = sock
        self.splitter = wire.Splitter()
        self.codes: set[bytes] = set()
        self.messages: list[Any] = []
        self.unsent = bytearray()


class Pool(Session):
    """Workers that run tasks: `with Pool(workers=4) as pool`, or `close` it. A worker that dies is replaced.

    `resources` are what each worker has beside a CPU, e.g. [{"gpu": 1}, {}]; a task that `needs` something waits for
    a worker that has it. With `record`, `recorded` holds what ran, for `compare`.
    """

    def __init__(
        self,
        workers: int | None = None,
        placement: str = PLACEMENT,
        resources: Sequence[Mapping[str, float]] = (),
        record: bool = False,
    ) -> None:
        count = workers if workers is not None else max(len(resources), 1) if resources else os.cpu_count() or 1
        if count < 1 or len(resources) > count:
            raise UsageError(
                f"workers={count} with resources of {len(resources)}.", "Each worker has at most one entry."
            )
        self.controller = Tasks(placement, AHEAD_S)
        self.recorded: list[Work] = []
        self._record = record
        self._folder = SharedFolder(f"tasks-{os.getpid()}-{next(_pools)}", Path(tempfile.gettempdir()))
        super().__init__(payload.Segments(str(self._folder.path), keep=False))
        self._lifeline = Lifeline(str(self._folder.path / "lifeline"))
        self._clock = WallClock()
        self._began_s = self._clock()
        self._ids = itertools.count(1)
        self._nodes = itertools.count(DRIVER + 1)
        self._has = [tuple(sorted(dict(one).items())) for one in resources] + [()] * (count - len(resources))
        self._processes: dict[int, Process] = {}
        self._specs: dict[str, tuple[Task, Spec, float, int]] = {}
        self._codes: dict[bytes, bytes] = {}
        self._values: dict[str, tuple[bool, bytes]] = {}
        self._held: dict[int, set[str]] = {}  # worker -> objects in segments of its own
        self._checkpoints: dict[tuple[str, int], bytes] = {}
        self._deaths: dict[str, int] = {}
        self._gone: set[str] = set()  # objects that cannot be made again
        self._waits: dict[str, list[Wait]] = {}
        self._inbox: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._dirty: dict[int, Process] = {}
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._asleep = False
        self._closed = self._over = False
        self._handlers: dict[int, Callable[..., None]] = {
            w.DONE: self._done, w.CHECKPOINT: self._checkpoint, w.MISSING: self._missing, w.SUBMIT: self._submitted,
            w.NEW_CODE: self._new_code, w.PUT: self._put_there, w.WANT: self._wanted_there, w.PIN: self._pinned_there,
            w.BEAT: self._beat,
        }  # fmt: skip
        self._selector.register(self._woken, selectors.EVENT_READ)
        for has in self._has:
            self._start(has)
        self._thread = threading.Thread(target=self._run, name="nubes-tasks", daemon=True)
        self._thread.start()
        session.enter(self)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers; objects that nobody has read are gone."""
        if self._closed:
            return
        self._closed = True
        session.leave(self)
        self._post(self._finish)
        self._thread.join()
        self._lifeline.close()
        for process in self._processes.values():
            process.popen.kill()
            process.popen.wait()
            process.sock.close()
        self._selector.close()
        self._wake.close()
        self._woken.close()
        self._folder.close()

    @property
    def pids(self) -> dict[int, int]:
        """Worker -> process id."""
        return {process.node: process.popen.pid for process in list(self._processes.values())}

    # -- called by any thread --------------------------------------------------------------------------------------

    def _post(self, do: Callable[..., None], *args: Any) -> None:
        self._inbox.append((do, args))
        if self._asleep:
            self._asleep = False
            self._wake.send(b"x")

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("The pool is closed.", "Use it within its `with` block.")

    def new_id(self) -> str:
        return str(next(self._ids))

    def send_code(self, digest: bytes, pickled: bytes) -> None:
        self._codes[digest] = pickled

    def send(self, task: Task, spec: Spec) -> ObjectRef[Any]:
        self._check_open()
        self._post(self._submit, DRIVER, task, spec)
        return ObjectRef(task.id, self)

    def put(self, value: T) -> ObjectRef[T]:
        """An object that tasks can share: shipped once, mapped by whoever reads it."""
        self._check_open()
        id, content = self.new_id(), payload.dumps(value, self.segments)
        self._post(self._put, DRIVER, id, content, w.size_of(content))
        return ObjectRef(id, self)

    def released(self, id: str) -> None:
        if not self._closed:
            self._post(self._handle, e.Released(id))

    def pinned(self, id: str) -> None:
        self._post(self._handle, e.Pinned(id))

    def wanted(self, ids: Sequence[str], count: int, timeout_s: float | None) -> set[str]:
        self._check_open()
        there: set[str] = set()
        enough = threading.Event()

        def tell(id: str) -> None:
            there.add(id)
            if len(there) >= count or self._closed:
                enough.set()

        wait = Wait(ids, tell)
        self._post(self._want, wait)
        if count:
            enough.wait(timeout_s)
            self._check_open()
        self._post(self._unwant, wait)
        return set(there)

    def value(self, id: str) -> Any:
        found = self._values.get(id)
        if found is None:
            if id in self._gone or id not in self._specs:
                raise session.lost(id)
            raise FileNotFoundError(id)
        return session.unwrap(*found)

    # -- the thread that talks with the workers --------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._serve()
        finally:  # nobody waits for what will never come
            self._closed = True
            for wait in [wait for waits in list(self._waits.values()) for wait in waits]:
                wait.tell("")

    def _serve(self) -> None:
        while True:
            while self._inbox:
                do, args = self._inbox.popleft()
                do(*args)
            if self._over:
                return
            self._flush()
            self._asleep = True
            ready = self._selector.select(0 if self._inbox else None)
            self._asleep = False
            for key, mask in ready:
                if key.fileobj is self._woken:
                    self._woken.recv(4096)
                else:
                    self._talk(key.data, mask)

    def _finish(self) -> None:
        self._over = True

    def _talk(self, process: Process, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._write(process)
        if mask & selectors.EVENT_READ:
            try:
                data = process.sock.recv(1 << 18)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lost(process)
                return
            for frame in process.splitter.feed(data):
                for message in frame:
                    self._handlers[message[0]](process.node, *message[1:])

    def _say(self, node: int, *message: Any) -> None:
        process = self._processes[node]
        process.messages.append(message)
        self._dirty[node] = process

    def _flush(self) -> None:
        for process in self._dirty.values():
            process.unsent += wire.pack(*process.messages)
            process.messages = []
            self._write(process)
        self._dirty.clear()

    def _write(self, process: Process) -> None:
        try:
            while process.unsent:
                del process.unsent[: process.sock.send(process.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            process.unsent.clear()  # reading will tell
        interest = selectors.EVENT_READ | (selectors.EVENT_WRITE if process.unsent else 0)
        if process.node in self._processes and self._selector.get_key(process.sock).events != interest:
            self._selector.modify(process.sock, interest, process)

    # -- workers ---------------------------------------------------------------------------------------------------

    def _start(self, has: tuple[tuple[str, float], ...]) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        command = [sys.executable, "-m", "nubes.data.tasks.worker", str(theirs.fileno()), str(self._folder.path)]
        command += [self._lifeline.path, *(path for path in sys.path if path)]
        popen = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=_environment(), stdin=subprocess.DEVNULL)
        theirs.close()
        node = next(self._nodes)
        process = self._processes[node] = Process(node, popen, ours)
        self._held[node] = set()
        self._selector.register(ours, selectors.EVENT_READ, process)
        self._handle(e.NodeReady(node, has))

    def _lost(self, process: Process) -> None:
        """A worker is gone, and what it held with it; another one takes its place."""
        node = self._processes.pop(process.node).node
        self._dirty.pop(node, None)
        self._selector.unregister(process.sock)
        process.sock.close()
        process.popen.kill()
        code = process.popen.wait()
        has = tuple(sorted(self.controller.nodes[node].has.items()))
        running = next(iter(self.controller.nodes[node].sent), None)
        if running is not None:
            self._deaths[running] = self._deaths.get(running, 0) + 1
            if self._deaths[running] >= DEATHS:
                self._give_up(node, running, code)
        for id in self._held.pop(node):
            _discard(self._values.pop(id)[1])
        payload.clean(self._folder.path, process.popen.pid)
        self._handle(e.NodeLost(node))
        self._start(has)

    def _give_up(self, node: int, task: str, code: int) -> None:
        error = InstanceDied(
            f"Task {self._specs[task][0].kind} took {DEATHS} workers with it (exit code {code}).",
            "Look for a crash in native code, or for too much memory.",
        )
        content = payload.dumps((False, error, "", ""), None)
        attempt = self.controller.table[task].attempt
        self._done(node, task, attempt, False, content, len(content), 0.0)

    # -- what workers say ------------------------------------------------------------------------------------------

    def _done(self, node: int, task: str, attempt: int, ok: bool, content: bytes, size: int, took_s: float) -> None:
        path = payload.segment_of(content)
        if not self.controller.counts(task, attempt, node):
            _discard(content)
            return
        self._forget_value(task)
        self._values[task] = (ok, content)
        if path:
            self._held[node].add(task)
        if self._record:
            about, _, at_s, origin = self._specs[task]
            self.recorded.append(Work(about, at_s, origin, took_s, size))
        self._handle(e.Done(task, attempt, node, node if path else DRIVER, size, took_s))

    def _checkpoint(self, node: int, actor: str, method: int, attempt: int, state: bytes) -> None:
        self._handle(e.Checkpointed(actor, method, attempt))
        found = self.controller.actors.get(actor)
        if found is not None and method in found.checkpoints:
            self._checkpoints[actor, method] = state

    def _missing(self, node: int, task: str, attempt: int, object: str) -> None:
        self._handle(e.InputMissing(task, attempt, node, object))

    def _submitted(self, node: int, task: Any, spec: Any) -> None:
        id, kind, inputs, needs, actor = task
        asked = tuple((what, amount) for what, amount in needs)
        self._submit(node, Task(id, kind, tuple(inputs), asked, actor), Spec(*spec))

    def _new_code(self, node: int, digest: bytes, pickled: bytes) -> None:
        self._codes[digest] = pickled

    def _put_there(self, node: int, id: str, content: bytes, size: int) -> None:
        self._put(node, id, content, size)

    def _wanted_there(self, node: int, wait: int, id: str) -> None:
        def tell(id: str) -> None:
            if node in self._processes:
                self._say(node, w.THERE, wait, id, *self._values.get(id, ()))

        self._want(Wait([id], tell))

    def _pinned_there(self, node: int, id: str) -> None:
        self._handle(e.Pinned(id))

    def _beat(self, node: int, queued: int, free: int, blocked: int) -> None:
        self._handle(e.Heartbeat(node, queued, free, blocked))

    # -- what anybody asks for -------------------------------------------------------------------------------------

    def _submit(self, node: int, task: Task, spec: Spec) -> None:
        if task.id in self._specs:  # by a task that runs again
            _discard(spec.arguments)
        else:
            self._specs[task.id] = (task, spec, self._clock() - self._began_s, node)
        self._handle(e.Submitted(task, node))

    def _put(self, node: int, id: str, content: bytes, size: int) -> None:
        if id in self._values:
            _discard(content)
            return
        self._values[id] = (True, content)
        self._handle(e.Put(id, DRIVER, size))

    def _want(self, wait: Wait) -> None:
        for id in wait.ids:
            self._waits.setdefault(id, []).append(wait)
            self._handle(e.Wanted(id))

    def _unwant(self, wait: Wait) -> None:
        for id in wait.ids:
            if wait in self._waits.get(id, ()):
                self._waits[id].remove(wait)
                if not self._waits[id]:
                    del self._waits[id]

    def _answer(self, id: str) -> None:
        for wait in self._waits.pop(id, ()):
            wait.tell(id)

    # -- what the controller wants ---------------------------------------------------------------------------------

    def _handle(self, event: Any) -> None:
        for command in self.controller.handle(event, self._clock()):
            self._do(command)

    def _do(self, command: Any) -> None:
        if isinstance(command, e.Run):
            self._run_there(command)
        elif isinstance(command, e.Free):
            self._forget_value(command.object)
        elif isinstance(command, e.Forget):
            spec = self._specs.pop(command.task, None)
            if spec is not None:
                _discard(spec[1].arguments)
            self._deaths.pop(command.task, None)
            self._gone.discard(command.task)
        elif isinstance(command, e.Available):
            self._gone.discard(command.object)
            self._answer(command.object)
        elif isinstance(command, e.Gone):
            self._gone.add(command.object)
            self._answer(command.object)
        elif isinstance(command, e.Restore):
            self._say(command.node, w.RESTORE, command.actor, self._checkpoints[command.actor, command.method])
        elif isinstance(command, e.Stop):
            self._say(command.node, w.STOP, command.actor)
        elif isinstance(command, e.ForgetCheckpoint):
            self._checkpoints.pop((command.actor, command.method), None)

    def _run_there(self, run: e.Run) -> None:
        task, spec, _, _ = self._specs[run.task]
        process = self._processes[run.node]
        if spec.code not in process.codes:
            process.codes.add(spec.code)
            self._say(run.node, w.CODE, spec.code, self._codes[spec.code])
        inputs = [(id, *self._values[id]) for id in task.inputs]
        self._say(run.node, w.RUN, run.task, run.attempt, task.actor, run.method, spec, inputs)

    def _forget_value(self, id: str) -> None:
        found = self._values.pop(id, None)
        if found is not None and _discard(found[1]):
            for held in self._held.values():
                held.discard(id)


def _discard(content: bytes) -> bool:
    """Removes the segment of a payload, if it has one."""
    path = payload.segment_of(content)
    if path:
        payload.discard(path)
    return bool(path)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


_default: Pool | None = None


def open_default() -> Pool:
    """The pool of those who opened none; it ends with the process."""
    global _default
    if _default is None or _default._closed:
        _default = Pool()
        atexit.register(_default.close)
    return _default
