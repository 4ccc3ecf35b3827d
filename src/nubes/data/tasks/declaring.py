"""How users declare tasks and actors, and call them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, ParamSpec, TypeVar, overload

from nubes.data.tasks.session import ObjectRef, Session, current
from nubes.kernel.errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class TaskFunction(Generic[P, R]):
    """A function that can also be a task. Calling it plainly runs it here."""

    def __init__(self, raw: Callable[P, R], needs: Mapping[str, float] | None = None) -> None:
        self.raw = raw
        self.needs = dict(needs or {})
        functools.update_wrapper(self, raw, updated=())

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.raw(*args, **kwargs)

    def submit(self, *args: Any, **kwargs: Any) -> ObjectRef[R]:
        """Hands in a call and returns at once. References among the arguments stand for their values."""
        return current().submit(self.raw, args, kwargs, self.needs)

    def __reduce__(self) -> tuple[Any, ...]:
        return TaskFunction, (self.raw, self.needs)


class ActorClass(Generic[T]):
    """A class whose objects can live in workers. Calling it plainly makes an object here."""

    def __init__(self, raw: type[T], needs: Mapping[str, float] | None = None, checkpoint_every: int = 0) -> None:
        self.raw = raw
        self.needs = dict(needs or {})
        self.checkpoint_every = checkpoint_every
        functools.update_wrapper(self, raw, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> T:
        return self.raw(*args, **kwargs)

    def submit(self, *args: Any, **kwargs: Any) -> ActorHandle:
        """Makes an object in a worker, and returns at once."""
        session = current()
        made = session.submit(
            self.raw, args, kwargs, self.needs, checkpoint_every=self.checkpoint_every, new_actor=True
        )
        return ActorHandle(self.raw, made, self.checkpoint_every, session)

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorClass, (self.raw, self.needs, self.checkpoint_every)


class ActorHandle:
    """An object in a worker: `handle.method.submit(...)`. Calls run one at a time, in the order of submission."""

    def __init__(self, raw: type[Any], made: ObjectRef[Any], checkpoint_every: int, session: Session | None = None):
        self._raw = raw
        self._made = made
        self._checkpoint_every = checkpoint_every
        self._session = session or current()

    def __getattr__(self, name: str) -> Method:
        if name.startswith("_") or not callable(getattr(self._raw, name, None)):
            raise AttributeError(f"{self._raw.__name__} has no method {name!r}.")
        return Method(self, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorHandle, (self._raw, self._made, self._checkpoint_every)


class Method:
    """One method of an object in a worker."""

    def __init__(self, handle: ActorHandle, name: str) -> None:
        self._handle = handle
        self._name = name

    def submit(self, *args: Any, **kwargs: Any) -> ObjectRef[Any]:
        """Hands in a call and returns at once."""
        it = self._handle
        return it._session.submit(
            it._raw, args, kwargs, actor=it._made.id, method=self._name, checkpoint_every=it._checkpoint_every
        )


@overload
def task(function: Callable[P, R], /) -> TaskFunction[P, R]: ...
@overload
def task(*, needs: Mapping[str, float] | None = None) -> Callable[[Callable[P, R]], TaskFunction[P, R]]: ...
def task(function: Any = None, /, *, needs: Mapping[str, float] | None = None) -> Any:
    """Makes a function one that can be submitted. It must be deterministic: what is lost is made again by it.

    `needs` is what a worker must have, e.g. {"gpu": 1}.
    """
    return TaskFunction(function) if function is not None else lambda raw: TaskFunction(raw, needs)


@overload
def actor(cls: type[T], /) -> ActorClass[T]: ...
@overload
def actor(
    *, needs: Mapping[str, float] | None = None, checkpoint_every: int = 0
) -> Callable[[type[T]], ActorClass[T]]: ...
def actor(cls: Any = None, /, *, needs: Mapping[str, float] | None = None, checkpoint_every: int = 0) -> Any:
    """Makes a class one whose objects can live in workers.

    When a worker dies, its objects are made again from their last checkpoint, taken (by pickling the object) after
    every `checkpoint_every` calls, and the calls since; with 0, from all their calls.
    """
    if checkpoint_every < 0:
        raise UsageError(f"checkpoint_every={checkpoint_every} is negative.", "0 means never.")
    return ActorClass(cls) if cls is not None else lambda raw: ActorClass(raw, needs, checkpoint_every)


def get(refs: ObjectRef[T] | Sequence[ObjectRef[T]], timeout: str | float | None = None) -> Any:
    """The value of a reference, or the list of the values of several; raises what the first failed task raised."""
    if isinstance(refs, ObjectRef):
        return refs.get(timeout)
    return refs[0]._session.get(refs, timeout) if refs else []


def wait(
    refs: Sequence[ObjectRef[T]], k: int = 1, timeout: str | float | None = None
) -> tuple[list[ObjectRef[T]], list[ObjectRef[T]]]:
    """Waits until `k` of the results are there: (those, the others), each in the order given.

    After `timeout` ("10s", or seconds; 0 only looks) those that are there may be fewer.
    """
    return refs[0]._session.wait(refs, k, timeout) if refs else current().wait(refs, k, timeout)


def put(value: T) -> ObjectRef[T]:
    """An object that many tasks read: shipped once, mapped by each of them."""
    return current().put(value)
