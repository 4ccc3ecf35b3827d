"""Task graphs on worker processes of this machine."""

from __future__ import annotations

import atexit
import itertools
import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from nubes.data.tasks import events as e
from nubes.data.tasks import session
from nubes.data.tasks.controller import Tasks
from nubes.data.tasks.driving import Driver, Wait
from nubes.data.tasks.models import Work
from nubes.data.tasks.session import ObjectRef, Session, Spec
from nubes.data.tasks.spec import DRIVER, Task
from nubes.data.tasks.worker import size_of
from nubes.drivers.local import payload
from nubes.drivers.local.shared_folder import SharedFolder
from nubes.kernel.errors import Unavailable, UsageError

T = TypeVar("T")

PLACEMENT = "bottom-up(threshold=1)"  # a worker has one CPU: the next one is nearer than the end of its queue

_pools = itertools.count()


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
        count = workers if workers is not None else len(resources) or os.cpu_count() or 1
        if count < 1 or len(resources) > count:
            raise UsageError(f"workers={count}, resources={len(resources)}.", "Each worker has at most one entry.")
        has = [tuple(sorted(dict(one).items())) for one in resources] + [()] * (count - len(resources))
        self._folder = SharedFolder(f"tasks-{os.getpid()}-{next(_pools)}", Path(tempfile.gettempdir()))
        super().__init__(payload.Segments(str(self._folder.path), keep=False))
        self._ids = itertools.count(1)
        self._closed = False
        self._driver = Driver(placement, self._folder.path, has, record)
        session.enter(self)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers; objects that nobody has read are gone."""
        if not self._closed:
            self._closed = True
            session.leave(self)
            self._driver.close()
            self._folder.close()

    @property
    def pids(self) -> dict[int, int]:
        """Worker -> process id."""
        return {node: process.popen.pid for node, process in list(self._driver.processes.by_node.items())}

    @property
    def controller(self) -> Tasks:
        """What decides; it counts tasks that ran again (`rerun`) and methods that were replayed (`replayed`)."""
        return self._driver.controller

    @property
    def recorded(self) -> list[Work]:
        """What ran, in the order of its ends."""
        return self._driver.recorded

    # -- what a session does ---------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed or self._driver.over:
            raise Unavailable("The pool is closed.", "Use it within its `with` block.")

    def new_id(self) -> str:
        return str(next(self._ids))

    def send_code(self, digest: bytes, pickled: bytes) -> None:
        self._driver.codes[digest] = pickled

    def send(self, task: Task, spec: Spec) -> ObjectRef[Any]:
        self._check_open()
        self._driver.post(self._driver.submit, DRIVER, task, spec)
        return ObjectRef(task.id, self)

    def put(self, value: T) -> ObjectRef[T]:
        """An object that tasks can share: shipped once, mapped by whoever reads it."""
        self._check_open()
        id, content = self.new_id(), payload.dumps(value, self.segments)
        self._driver.post(self._driver.put, DRIVER, id, content, size_of(content))
        return ObjectRef(id, self)

    def released(self, id: str) -> None:
        if not self._closed:
            self._driver.post(self._driver.handle, e.Released(id))

    def pinned(self, id: str) -> None:
        self._driver.post(self._driver.handle, e.Pinned(id))

    def wanted(self, ids: Sequence[str], count: int, timeout_s: float | None) -> set[str]:
        self._check_open()
        there: set[str] = set()
        enough = threading.Event()

        def tell(id: str) -> None:
            there.add(id)
            if len(there) >= count or self._driver.over:
                enough.set()

        wait = Wait(ids, tell)
        self._driver.post(self._driver.want, wait)
        if count:
            enough.wait(timeout_s)
            self._check_open()
        self._driver.post(self._driver.unwant, wait)
        return set(there)

    def value(self, id: str) -> Any:
        found = self._driver.values.get(id)
        if found is not None:
            return session.unwrap(*found)
        if id in self._driver.gone or id not in self._driver.specs:
            raise session.lost(id)
        raise FileNotFoundError(id)


_default: Pool | None = None


def open_default() -> Pool:
    """The pool of those who opened none; it ends with the process."""
    global _default
    if _default is None or _default._closed:
        _default = Pool()
        atexit.register(_default.close)
    return _default
