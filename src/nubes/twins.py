"""One name, two ways to call it: `f(x)` blocks, `await f.aio(x)` does not."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from nubes import client as clients

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


class Twins(Generic[P, R]):
    """A blocking callable with its async twin."""

    def __init__(self, blocking: Callable[P, R], aio: Callable[P, Any]) -> None:
        self._blocking = blocking
        self.aio = aio
        functools.update_wrapper(self, blocking, updated=())

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._blocking(*args, **kwargs)


class twin:
    """A blocking method with an async twin, `@twin(its_async_form)`; made for an object when it is first used there."""

    def __init__(self, aio: Callable[..., Any]) -> None:
        self._aio = aio

    def __call__(self, blocking: Callable[Concatenate[S, P], R]) -> _TwinMethod[S, P, R]:
        return _TwinMethod(blocking, self._aio)


class _TwinMethod(Generic[S, P, R]):
    def __init__(self, blocking: Callable[Concatenate[S, P], R], aio: Callable[..., Any]) -> None:
        self._blocking = blocking
        self._aio = aio

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Callable[Concatenate[S, P], R]: ...
    @overload
    def __get__(self, instance: S, owner: type) -> Twins[P, R]: ...
    def __get__(self, instance: S | None, owner: type) -> Any:
        if instance is None:
            return self._blocking
        made = Twins(self._blocking.__get__(instance), self._aio.__get__(instance))
        instance.__dict__[self._name] = made  # found there from now on, without coming here
        return made


class Ask(Protocol):
    """Asks the control plane something. See `nubes.drivers.local.asks`."""

    def __call__(self, name: str, /, **arguments: Any) -> Awaitable[Any]: ...


async def _asks_blocking(name: str, /, **arguments: Any) -> Any:
    return clients.connect().ask(name, **arguments)


async def _asks_async(name: str, /, **arguments: Any) -> Any:
    return await clients.connect().aio.ask(name, **arguments)


def _finish(work: Coroutine[Any, Any, R]) -> R:
    """The result of a coroutine that never waits for an event loop."""
    try:
        work.send(None)
    except StopIteration as done:
        return cast(R, done.value)
    raise RuntimeError("a blocking twin waited for an event loop")


class asking(Generic[S, P, R]):
    """A method written once, as a coroutine that awaits nothing but its `ask`, with a blocking and an async form."""

    def __init__(self, method: Callable[Concatenate[S, Ask, P], Coroutine[Any, Any, R]]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    @overload
    def __get__(self, instance: None, owner: type[S]) -> Callable[Concatenate[S, Ask, P], Coroutine[Any, Any, R]]: ...
    @overload
    def __get__(self, instance: S, owner: type[S]) -> Twins[P, R]: ...
    def __get__(self, instance: S | None, owner: type[S]) -> Any:
        if instance is None:
            return self._method
        method = self._method

        @functools.wraps(method)
        def blocking(*args: P.args, **kwargs: P.kwargs) -> R:
            return _finish(method(instance, _asks_blocking, *args, **kwargs))

        def aio(*args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
            return method(instance, _asks_async, *args, **kwargs)

        return Twins(blocking, aio)


class threaded(Generic[S, P, R]):
    """A method that works on files: its async form runs it in a thread."""

    def __init__(self, method: Callable[Concatenate[S, P], R]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    @overload
    def __get__(self, instance: None, owner: type[S]) -> Callable[Concatenate[S, P], R]: ...
    @overload
    def __get__(self, instance: S, owner: type[S]) -> Twins[P, R]: ...
    def __get__(self, instance: S | None, owner: type[S]) -> Any:
        if instance is None:
            return self._method
        bound = cast(Callable[P, R], functools.partial(self._method, instance))

        def aio(*args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
            import asyncio

            return asyncio.to_thread(bound, *args, **kwargs)

        return Twins(bound, aio)
