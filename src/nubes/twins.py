"""One name, two ways to call it: `f(x)` blocks, `await f.aio(x)` does not."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast

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


class Ask(Protocol):
    """Asks the control plane something. See `nubes.drivers.local.asks`."""

    def __call__(self, name: str, /, **arguments: Any) -> Awaitable[Any]: ...


async def _asks_blocking(name: str, /, **arguments: Any) -> Any:
    return clients.connect().ask(name, **arguments)


async def _asks_async(name: str, /, **arguments: Any) -> Any:
    return await clients.connect().ask_async(name, **arguments)


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

    def __get__(self, instance: S, owner: type[S]) -> Twins[P, R]:
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

    def __get__(self, instance: S, owner: type[S]) -> Twins[P, R]:
        bound = cast(Callable[P, R], functools.partial(self._method, instance))

        def aio(*args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
            return asyncio.to_thread(bound, *args, **kwargs)

        return Twins(bound, aio)
