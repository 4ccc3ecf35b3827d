"""The thread between a pool's users, the controller and the workers: it does what the controller commands."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nubes.data.tasks import events as e
from nubes.data.tasks import worker as w
from nubes.data.tasks.controller import Tasks
from nubes.data.tasks.models import Work
from nubes.data.tasks.processes import Processes
from nubes.data.tasks.session import Spec
from nubes.data.tasks.spec import DRIVER, Task
from nubes.drivers.local import payload
from nubes.kernel.clock import WallClock
from nubes.kernel.errors import InstanceDied

AHEAD_S = 0.02  # what a worker has to do before it hears of more
DEATHS = 4  # workers that a task may take with it

Has = tuple[tuple[str, float], ...]


class Wait:
    """Somebody waits for objects. `tell` is called once for each that is there, or gone."""

    def __init__(self, ids: Sequence[str], tell: Callable[[str], None]) -> None:
        self.ids = ids
        self.tell = tell


class Driver:
    """Everything but `post` belongs to its thread; others may read `values`, `gone`, `specs` and `over`."""

    def __init__(self, placement: str, folder: Path, workers: Sequence[Has], record: bool) -> None:
        self.controller = Tasks(placement, AHEAD_S)
        self.processes = Processes(str(folder))
        self.values: dict[str, tuple[bool, bytes]] = {}  # object -> (ok, payload)
        self.gone: set[str] = set()  # objects that cannot be made again
        self.specs: dict[str, tuple[Task, Spec, float, int]] = {}  # task -> what, how, when and from which node
        self.codes: dict[bytes, bytes] = {}  # hash -> pickled function or class
        self.held: dict[int, set[str]] = {}  # worker -> objects in segments of its own
        self.recorded: list[Work] = []
        self.over = False
        self._folder = folder
        self._record = record
        self._knows: dict[int, set[bytes]] = {}  # worker -> the code it has
        self._checkpoints: dict[tuple[str, int], bytes] = {}
        self._deaths: dict[str, int] = {}
        self._waits: dict[str, list[Wait]] = {}
        self._nodes = itertools.count(DRIVER + 1)
        self._clock = WallClock()
        self._began_s = self._clock()
        self._inbox: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._asleep = False
        self._handlers: dict[int, Callable[..., None]] = {
            w.DONE: self._done, w.CHECKPOINT: self._checkpoint, w.MISSING: self._missing, w.SUBMIT: self._submitted,
            w.NEW_CODE: self._new_code, w.PUT: self.put, w.WANT: self._want_there, w.PIN: self._pin, w.BEAT: self._beat,
        }  # fmt: skip
        for has in workers:
            self._start(has)
        self._thread = threading.Thread(target=self._run, name="nubes-tasks", daemon=True)
        self._thread.start()

    # -- its thread ------------------------------------------------------------------------------------------------

    def post(self, do: Callable[..., None], *args: Any) -> None:
        """Has the thread do something. For any thread."""
        self._inbox.append((do, args))
        if self._asleep:
            self._asleep = False
            self.processes.wake()

    def close(self) -> None:
        self.post(self._finish)
        self._thread.join()
        self.processes.close()

    def _finish(self) -> None:
        self.over = True

    def _run(self) -> None:
        try:
            self._serve()
        finally:  # nobody waits for what will never come
            self.over = True
            for wait in [wait for waits in list(self._waits.values()) for wait in waits]:
                wait.tell("")

    def _serve(self) -> None:
        while True:
            while self._inbox:
                do, args = self._inbox.popleft()
                do(*args)
            if self.over:
                return
            self.processes.flush()
            self._asleep = True
            for node, messages in self.processes.poll(not self._inbox):
                if messages is None:
                    self._lost(node)
                else:
                    for message in messages:
                        self._handlers[message[0]](node, *message[1:])
            self._asleep = False

    # -- workers ---------------------------------------------------------------------------------------------------

    def _start(self, has: Has) -> None:
        node = next(self._nodes)
        self.processes.start(node)
        self.held[node], self._knows[node] = set(), set()
        self.handle(e.NodeReady(node, has))

    def _lost(self, node: int) -> None:
        """A worker is gone, and what it held with it; another one takes its place."""
        pid, code = self.processes.end(node)
        view = self.controller.nodes[node]
        running = next(iter(view.sent), None)
        if running is not None:
            self._deaths[running] = self._deaths.get(running, 0) + 1
            if self._deaths[running] >= DEATHS:
                self._give_up(node, running, code)
        for id in self.held.pop(node):
            _discard(self.values.pop(id)[1])
        payload.clean(self._folder, pid)
        del self._knows[node]
        self.handle(e.NodeLost(node))
        self._start(tuple(sorted(view.has.items())))

    def _give_up(self, node: int, task: str, code: int) -> None:
        error = InstanceDied(
            f"Task {self.specs[task][0].kind} took {DEATHS} workers with it (exit code {code}).",
            "Look for a crash in native code, or for too much memory.",
        )
        content = payload.dumps((False, error, "", ""), None)
        self._done(node, task, self.controller.table[task].attempt, False, content, len(content), 0.0)

    # -- what workers say ------------------------------------------------------------------------------------------

    def _done(self, node: int, task: str, attempt: int, ok: bool, content: bytes, size: int, took_s: float) -> None:
        if not self.controller.counts(task, attempt, node):
            _discard(content)
            return
        self._forget_value(task)
        self.values[task] = (ok, content)
        holder = node if payload.segment_of(content) else DRIVER
        if holder == node:
            self.held[node].add(task)
        if self._record:
            about, _, at_s, origin = self.specs[task]
            self.recorded.append(Work(about, at_s, origin, took_s, size))
        self.handle(e.Done(task, attempt, node, holder, size, took_s))

    def _checkpoint(self, node: int, actor: str, method: int, attempt: int, state: bytes) -> None:
        self.handle(e.Checkpointed(actor, method, attempt))
        found = self.controller.actors.get(actor)
        if found is not None and method in found.checkpoints:
            self._checkpoints[actor, method] = state

    def _missing(self, node: int, task: str, attempt: int, object: str) -> None:
        self.handle(e.InputMissing(task, attempt, node, object))

    def _submitted(self, node: int, task: Any, spec: Any) -> None:
        id, kind, inputs, needs, actor = task
        asked = tuple((what, amount) for what, amount in needs)
        self.submit(node, Task(id, kind, tuple(inputs), asked, actor), Spec(*spec))

    def _new_code(self, node: int, digest: bytes, pickled: bytes) -> None:
        self.codes[digest] = pickled

    def _want_there(self, node: int, wait: int, id: str) -> None:
        def tell(id: str) -> None:
            if node in self.processes.by_node:
                self.processes.say(node, w.THERE, wait, id, *self.values.get(id, ()))

        self.want(Wait([id], tell))

    def _pin(self, node: int, id: str) -> None:
        self.handle(e.Pinned(id))

    def _beat(self, node: int, queued: int, free: int, blocked: int) -> None:
        self.handle(e.Heartbeat(node, queued, free, blocked))

    # -- what anybody asks for -------------------------------------------------------------------------------------

    def submit(self, node: int, task: Task, spec: Spec) -> None:
        if task.id in self.specs:  # by a task that runs again
            _discard(spec.arguments)
        else:
            self.specs[task.id] = (task, spec, self._clock() - self._began_s, node)
        self.handle(e.Submitted(task, node))

    def put(self, node: int, id: str, content: bytes, size: int) -> None:
        if id in self.values:
            _discard(content)
            return
        self.values[id] = (True, content)
        self.handle(e.Put(id, DRIVER, size))

    def want(self, wait: Wait) -> None:
        for id in wait.ids:
            self._waits.setdefault(id, []).append(wait)
            self.handle(e.Wanted(id))

    def unwant(self, wait: Wait) -> None:
        for id in wait.ids:
            if wait in self._waits.get(id, ()):
                self._waits[id].remove(wait)
                if not self._waits[id]:
                    del self._waits[id]

    # -- what the controller wants ---------------------------------------------------------------------------------

    def handle(self, event: Any) -> None:
        for command in self.controller.handle(event, self._clock()):
            self._do(command)

    def _do(self, command: Any) -> None:
        if isinstance(command, e.Run):
            self._run_there(command)
        elif isinstance(command, e.Free):
            self._forget_value(command.object)
        elif isinstance(command, e.Forget):
            spec = self.specs.pop(command.task, None)
            if spec is not None:
                _discard(spec[1].arguments)
            self._deaths.pop(command.task, None)
            self.gone.discard(command.task)
        elif isinstance(command, (e.Available, e.Gone)):
            (self.gone.add if isinstance(command, e.Gone) else self.gone.discard)(command.object)
            for wait in self._waits.pop(command.object, ()):
                wait.tell(command.object)
        elif isinstance(command, e.Restore):
            state = self._checkpoints[command.actor, command.method]
            self.processes.say(command.node, w.RESTORE, command.actor, state)
        elif isinstance(command, e.Stop):
            self.processes.say(command.node, w.STOP, command.actor)
        elif isinstance(command, e.ForgetCheckpoint):
            self._checkpoints.pop((command.actor, command.method), None)

    def _run_there(self, run: e.Run) -> None:
        task, spec, _, _ = self.specs[run.task]
        if spec.code not in self._knows[run.node]:
            self._knows[run.node].add(spec.code)
            self.processes.say(run.node, w.CODE, spec.code, self.codes[spec.code])
        inputs = [(id, *self.values[id]) for id in task.inputs]
        self.processes.say(run.node, w.RUN, run.task, run.attempt, task.actor, run.method, spec, inputs)

    def _forget_value(self, id: str) -> None:
        found = self.values.pop(id, None)
        if found is not None and _discard(found[1]):
            for held in self.held.values():
                held.discard(id)


def _discard(content: bytes) -> bool:
    """Removes the segment of a payload, if it has one."""
    path = payload.segment_of(content)
    if path:
        payload.discard(path)
    return bool(path)
