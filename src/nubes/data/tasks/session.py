"""What a process that submits tasks needs, be it the driver or a worker: references, and how calls are shipped."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Generic, TypeVar

import msgspec

from nubes import jobs
from nubes.data.tasks.spec import Task
from nubes.drivers.local import payload
from nubes.kernel.errors import CallTimeout, NotFound, UsageError
from nubes.kernel.units import seconds

T = TypeVar("T")


class Spec(msgspec.Struct, frozen=True, array_like=True):
    """How a task is run: the hash of its function or class, its arguments, and for actors the method ("" makes one)."""

    code: bytes
    arguments: bytes
    method: str = ""
    checkpoint_every: int = 0


class ObjectRef(Generic[T]):
    """The result of a task that may not have run yet. Among the arguments of another task it stands for its value."""

    __slots__ = ("__weakref__", "_session", "id")

    def __init__(self, id: str, session: Session) -> None:
        self.id = id
        self._session = session

    def get(self, timeout: str | float | None = None) -> T:
        """Waits for the value; raises what the task raised."""
        value: T = self._session.get([self], timeout)[0]
        return value

    def __del__(self) -> None:
        self._session.released(self.id)

    def __reduce__(self) -> tuple[Any, ...]:
        self._session.pinned(self.id)
        return _found, (self.id,)

    def __repr__(self) -> str:
        return f"ObjectRef({self.id!r})"


class Borrowed(ObjectRef[T]):
    """A reference that came from elsewhere: the object is kept until the end anyway."""

    __slots__ = ()

    def __del__(self) -> None:
        pass


def _found(id: str) -> ObjectRef[Any]:
    return Borrowed(id, current())


class Input(msgspec.Struct, frozen=True, array_like=True):
    """Stands among the arguments for the value of the task's input of that number."""

    number: int


class Session:
    """Subclasses say how things are sent (`send`, `wanted`, `value`) and what becomes of references."""

    def __init__(self, segments: payload.Segments) -> None:
        self.segments = segments
        self._code: weakref.WeakKeyDictionary[Any, bytes] = weakref.WeakKeyDictionary()

    # -- subclasses ------------------------------------------------------------------------------------------------

    def send(self, task: Task, spec: Spec) -> ObjectRef[Any]:
        raise NotImplementedError

    def send_code(self, digest: bytes, pickled: bytes) -> None:
        raise NotImplementedError

    def new_id(self) -> str:
        raise NotImplementedError

    def put(self, value: T) -> ObjectRef[T]:
        raise NotImplementedError

    def wanted(self, ids: Sequence[str], count: int, timeout_s: float | None) -> set[str]:
        """Waits until so many of the objects are there, or gone; returns those."""
        raise NotImplementedError

    def value(self, id: str) -> Any:
        """The value of an object that is there. Raises what its task raised, `NotFound`."""
        raise NotImplementedError

    def released(self, id: str) -> None: ...

    def pinned(self, id: str) -> None: ...

    # -- for users -------------------------------------------------------------------------------------------------

    def submit(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        needs: Mapping[str, float] | None = None,
        actor: str = "",
        method: str = "",
        checkpoint_every: int = 0,
        new_actor: bool = False,
    ) -> ObjectRef[Any]:
        """Hands in a call. For actors, `function` is the class; `new_actor` makes one, else `actor` is asked."""
        id = self.new_id()
        inputs: list[str] = []
        if any(isinstance(one, ObjectRef) for one in (*args, *kwargs.values())):

            def stand_in(value: Any) -> Any:
                if not isinstance(value, ObjectRef):
                    return value
                inputs.append(value.id)
                return Input(len(inputs) - 1)

            args, kwargs = tuple(map(stand_in, args)), {name: stand_in(value) for name, value in kwargs.items()}
        spec = Spec(
            self._digest(function), payload.dumps((args, dict(kwargs)), self.segments), method, checkpoint_every
        )
        kind = f"{function.__qualname__}.{method}" if method else getattr(function, "__qualname__", repr(function))
        asked = tuple(sorted(needs.items())) if needs else ()
        return self.send(Task(id, kind, tuple(inputs), asked, id if new_actor else actor), spec)

    def _digest(self, function: Callable[..., Any]) -> bytes:
        try:
            return self._code[function]
        except KeyError:
            pickled = jobs.dumps(function)
            digest = self._code[function] = blake2b(pickled, digest_size=16).digest()
            self.send_code(digest, pickled)
            return digest

    def get(self, refs: Sequence[ObjectRef[Any]], timeout: str | float | None = None) -> list[Any]:
        """The values of all. Raises what the first failed task raised, `CallTimeout`, `NotFound`."""
        ids = list(dict.fromkeys(ref.id for ref in refs))
        there = self.wanted(ids, len(ids), None if timeout is None else seconds(timeout, "timeout"))
        if len(there) < len(ids):
            raise CallTimeout(
                f"{len(ids) - len(there)} of {len(ids)} objects were not there in time.", "Wait longer, or use wait()."
            )
        values: dict[str, Any] = {}
        again = ids
        while again:
            ids, again = again, []
            for id in ids:
                try:
                    values[id] = self.value(id)
                except FileNotFoundError:  # its worker has died just now: it is made again
                    again.append(id)
            if again:
                time.sleep(0.01)
                self.wanted(again, len(again), None)
        return [values[ref.id] for ref in refs]

    def wait(
        self, refs: Sequence[ObjectRef[T]], k: int = 1, timeout: str | float | None = None
    ) -> tuple[list[ObjectRef[T]], list[ObjectRef[T]]]:
        """Waits for the first `k`: (those that are there, the others), each in the order given."""
        if not 0 <= k <= len(refs):
            raise UsageError(f"k={k}, but there are {len(refs)} references.", "k is at most how many there are.")
        there = self.wanted([ref.id for ref in refs], k, None if timeout is None else seconds(timeout, "timeout"))
        done = [ref for ref in refs if ref.id in there][:k]
        chosen = {id(ref) for ref in done}
        return done, [ref for ref in refs if id(ref) not in chosen]


_sessions: list[Session] = []


def current() -> Session:
    """The session that calls go to: the worker's, or the innermost open pool; one is opened if there is none."""
    if not _sessions:
        from nubes.data.tasks.live import open_default

        return open_default()
    return _sessions[-1]


def enter(session: Session) -> None:
    _sessions.append(session)


def leave(session: Session) -> None:
    if session in _sessions:
        _sessions.remove(session)


def unwrap(ok: bool, value: bytes) -> Any:
    """The value of a payload; raises what it holds if the task failed."""
    loaded = payload.loads(value)
    if ok:
        return loaded
    raise jobs.failure(loaded)


def lost(id: str) -> NotFound:
    return NotFound(f"The object {id} is gone and cannot be made again.", "Keep its ObjectRef as long as it is needed.")
