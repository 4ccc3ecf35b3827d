"""A worker process: runs tasks one at a time, keeps actors, and is a node of its own.

Run as `python -m nubes.data.tasks.worker`. A task that waits for others gives its turn to the next one.
"""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from typing import Any, TypeVar

from nubes import jobs
from nubes.data.tasks import session
from nubes.data.tasks.session import Borrowed, Input, ObjectRef, Session, Spec
from nubes.data.tasks.spec import Task
from nubes.drivers.local import lifeline, payload, wire
from nubes.kernel.errors import UsageError

T = TypeVar("T")

# driver -> worker
CODE, RUN, RESTORE, STOP, THERE = range(5)
# worker -> driver; all that has happened since the last frame comes in one
DONE, CHECKPOINT, MISSING, SUBMIT, NEW_CODE, PUT, WANT, PIN, BEAT = range(10, 19)

_BATCH = 64  # so many messages, or so many seconds, are sent together
_BATCH_S = 0.002


Found = tuple[bool, bytes] | None  # ok, and the value or the failure; None: it is gone


class Place(threading.local):
    """The task a thread runs, how many it has submitted, how long it waited, and the objects it waited for last."""

    task = ""
    count = 0
    blocked_s = 0.0

    def __init__(self) -> None:
        self.found: dict[str, Found] = {}


class Worker(Session):
    """One thread at a time runs a task; another one reads when that one waits for objects."""

    def __init__(self, stream: wire.Stream, folder: str) -> None:
        super().__init__(payload.Segments(folder, keep=False))
        self._stream = stream
        self._place = Place()
        self._functions: dict[bytes, Any] = {}
        self._actors: dict[str, Any] = {}
        self._busy: set[str] = set()  # actors with a method that runs, or waits
        self._todo: deque[list[Any]] = deque()
        self._out: list[Any] = []
        self._late = threading.Event()
        self._waiting: dict[int, dict[str, Found]] = {}  # what came for each wait
        self._waits = itertools.count()
        self._turn = threading.Lock()  # whoever holds it runs
        self._news = threading.Condition()
        self._reading = False
        self._blocked = 0
        self._idle = 0  # threads that take tasks, or would if there were any

    # -- taking tasks ----------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Takes one task after the other, until the driver is gone."""
        with self._news:
            self._idle += 1
        while True:
            message = self._take()
            with self._turn:
                self._do(message)
            with self._news:
                self._busy.discard(_actor(message))
                self._idle += 1

    def _take(self) -> list[Any]:
        with self._news:
            while True:
                for place, message in enumerate(self._todo):
                    if _actor(message) not in self._busy:
                        del self._todo[place]
                        if _actor(message):
                            self._busy.add(_actor(message))
                        self._idle -= 1
                        return message
                if self._reading:
                    self._news.wait()
                else:
                    self._read()

    def _read(self) -> None:
        """Waits for a frame, with `_news` held, which others may have meanwhile."""
        self._reading = True
        self._flush()
        self._news.release()
        try:
            frame = self._stream.recv()
        except OSError:
            os._exit(0)  # the driver is gone
        self._news.acquire()
        self._reading = False
        for message in frame:
            if message[0] == THERE:
                _, wait, id, *found = message
                if wait in self._waiting:
                    self._waiting[wait][id] = (found[0], found[1]) if found else None
            elif message[0] == CODE:
                self._functions[message[1]] = message[2]
            else:
                self._todo.append(message)
        self._news.notify_all()

    def _tell(self, *message: Any) -> None:
        with self._news:
            self._out.append(message)
            if len(self._out) >= _BATCH:
                self._flush()
            elif len(self._out) == 1:
                self._late.set()

    def flush_late(self) -> None:
        """What is done is told soon, however long the next task takes."""
        while True:
            self._late.wait()
            self._late.clear()
            time.sleep(_BATCH_S)
            with self._news:
                self._flush()

    def _flush(self) -> None:
        if self._out:
            running = int(self._turn.locked())
            self._out.append((BEAT, len(self._todo) + running, 1 - running, self._blocked))
            self._stream.send(wire.pack(*self._out))
            self._out = []

    # -- running them ----------------------------------------------------------------------------------------------

    def _do(self, message: list[Any]) -> None:
        if message[0] == STOP:
            self._actors.pop(message[1], None)
        elif message[0] == RESTORE:
            self._actors[message[1]] = pickle.loads(message[2])
        else:
            _, task, attempt, actor, number, spec, inputs = message
            self._run(task, attempt, actor, number, Spec(*spec), inputs)

    def _run(self, task: str, attempt: int, actor: str, number: int, spec: Spec, inputs: list[Any]) -> None:
        values = []
        for id, ok, content in inputs:
            if not ok:  # what failed before fails this one, too
                self._tell(DONE, task, attempt, False, content, 0, 0.0)
                return
            try:
                values.append(payload.loads(content))
            except FileNotFoundError:
                self._tell(MISSING, task, attempt, id)
                return
        self._place.task, self._place.count, self._place.blocked_s = task, 0, 0.0
        began = time.perf_counter()
        try:
            result = self._call(spec, actor, values)
            ok, content = True, payload.dumps(result, self.segments)
        except Exception as error:
            ok, content = False, payload.dumps(_failed(error), None)
        took = time.perf_counter() - began - self._place.blocked_s
        self._tell(DONE, task, attempt, ok, content, size_of(content), took)
        if number and spec.checkpoint_every and number % spec.checkpoint_every == 0:
            self._tell(CHECKPOINT, actor, number, attempt, jobs.dumps(self._actors[actor]))

    def _call(self, spec: Spec, actor: str, values: list[Any]) -> Any:
        args, kwargs = payload.loads(spec.arguments)
        if values:
            args = [values[one.number] if type(one) is Input else one for one in args]
            kwargs = {name: values[one.number] if type(one) is Input else one for name, one in kwargs.items()}
        if spec.method:
            return getattr(self._actors[actor], spec.method)(*args, **kwargs)
        function = self._functions[spec.code]
        if isinstance(function, bytes):
            function = self._functions[spec.code] = pickle.loads(function)
        result = function(*args, **kwargs)
        if actor:
            self._actors[actor] = result
            return None
        return result

    # -- what tasks do themselves ----------------------------------------------------------------------------------

    def new_id(self) -> str:
        self._place.count += 1
        return f"{self._own()}.{self._place.count}"

    def send_code(self, digest: bytes, pickled: bytes) -> None:
        self._tell(NEW_CODE, digest, pickled)

    def send(self, task: Task, spec: Spec) -> ObjectRef[Any]:
        self._tell(SUBMIT, task, spec)
        return Borrowed(task.id, self)

    def put(self, value: T) -> ObjectRef[T]:
        id = self.new_id()
        content = payload.dumps(value, self.segments)
        self._tell(PUT, id, content, size_of(content))
        return Borrowed(id, self)

    def pinned(self, id: str) -> None:
        self._tell(PIN, id)

    def wanted(self, ids: Sequence[str], count: int, timeout_s: float | None) -> set[str]:
        task, submitted = self._own(), self._place.count
        until = None if timeout_s is None else time.monotonic() + timeout_s
        with self._news:
            wait = next(self._waits)
            found = self._waiting[wait] = {}
            self._out += [(WANT, wait, id) for id in ids]
            self._blocked += 1
            self._turn.release()
            self._flush()
            began = time.perf_counter()
            if not self._idle:
                threading.Thread(target=self.serve, daemon=True).start()
            while len(found) < count:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    break
                self._news.wait(left)
            del self._waiting[wait]
            self._blocked -= 1
        self._turn.acquire()
        self._place.blocked_s += time.perf_counter() - began
        self._place.task, self._place.count, self._place.found = task, submitted, found
        return set(found)

    def value(self, id: str) -> Any:
        found = self._place.found[id]
        if found is None:
            raise session.lost(id)
        return session.unwrap(*found)

    def _own(self) -> str:
        if not self._place.task:
            raise UsageError("A thread that a task has started cannot submit or wait.", "Do so in the task itself.")
        return self._place.task


def _actor(message: list[Any]) -> str:
    actor: str = message[3] if message[0] == RUN else message[1]
    return actor


def _failed(error: Exception) -> tuple[Any, ...]:
    """As `jobs.failure` takes it."""
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(jobs.dumps(error))
    except Exception:
        return False, None, f"{type(error).__name__}: {error}", text
    return False, error, "", text


def size_of(content: bytes) -> int:
    """Bytes of a value, those in shared memory included."""
    path = payload.segment_of(content)
    return len(content) + (os.path.getsize(path) if path else 0)


def main() -> None:
    fd, folder, line = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lifeline.hold(line)
    worker = Worker(wire.Stream(fd), folder)
    session.enter(worker)
    threading.Thread(target=worker.flush_late, daemon=True).start()
    worker.serve()


if __name__ == "__main__":
    main()
