"""The ways to call something in the cloud."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any, Generic, ParamSpec, TypeVar

from nubes.api.function_call import FunctionCall
from nubes.client import Client, Target
from nubes.kernel.errors import UsageError
from nubes.twins import twin

P = ParamSpec("P")
R = TypeVar("R")


class Calling(Generic[P, R]):
    """What can be called in the cloud. Each way to call also has an async form: `await f.remote.aio(...)`."""

    # Subclasses say what is called, and through whom.

    def _target(self) -> Target:
        raise NotImplementedError

    def _client(self) -> Client:
        raise NotImplementedError

    @property
    def is_generator(self) -> bool:
        """Whether it yields items."""
        return False

    def _client_for(self, way: str) -> Client:
        """The client, for a way to call that takes one result. Raises `UsageError` for generators."""
        if self.is_generator:
            raise UsageError(
                f"A generator cannot be called with .{way}(): nobody would take what it yields.", "Use .remote_gen()."
            )
        return self._client()

    async def _remote(self, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        return await self._client_for("remote.aio").aio.remote(self._target(), args, kwargs)

    @twin(_remote)
    def remote(self, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Runs a call in the cloud and returns its result; what it raises is raised here. Of a generator: its items."""
        if self.is_generator:
            return self._client().stream(self._target(), args, kwargs)
        return self._client().remote(self._target(), args, kwargs)

    def _remote_gen(self, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[Any]:
        return self._client().aio.stream(self._target(), args, kwargs)

    @twin(_remote_gen)
    def remote_gen(self, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[Any]:
        """Runs a generator in the cloud and yields what it yields, as it comes."""
        return self._client().stream(self._target(), args, kwargs)

    async def _spawn(self, /, *args: P.args, **kwargs: P.kwargs) -> FunctionCall:
        return FunctionCall(await self._client_for("spawn").aio.spawn(self._target(), args, kwargs))

    @twin(_spawn)
    def spawn(self, /, *args: P.args, **kwargs: P.kwargs) -> FunctionCall:
        """Hands in a call and returns at once. The call survives crashes and runs at least once."""
        return FunctionCall(self._client_for("spawn").spawn(self._target(), args, kwargs))

    # A call for each of many inputs: all of them are `starmap`.

    def _starmap(
        self,
        iterable: Iterable[Iterable[Any]],
        *,
        kwargs: Mapping[str, Any] = {},
        order_outputs: bool = True,
        return_exceptions: bool = False,
    ) -> AsyncIterator[Any]:
        inputs = ((tuple(one), dict(kwargs)) for one in iterable)
        return self._client_for("map").aio.map(self._many(), inputs, order_outputs, return_exceptions)

    @twin(_starmap)
    def starmap(
        self,
        iterable: Iterable[Iterable[Any]],
        *,
        kwargs: Mapping[str, Any] = {},
        order_outputs: bool = True,
        return_exceptions: bool = False,
    ) -> Iterator[Any]:
        """Runs a call for each tuple of arguments; yields results in order, or as they complete.

        `kwargs` are keyword arguments of every call. A failure is raised when its turn comes, and cancels the rest;
        with `return_exceptions` it is yielded.
        """
        inputs = ((tuple(one), dict(kwargs)) for one in iterable)
        return self._client_for("map").map(self._many(), inputs, order_outputs, return_exceptions)

    def _map(self, *iterables: Iterable[Any], **options: Any) -> AsyncIterator[Any]:
        return self._starmap(zip(*iterables, strict=False), **options)

    @twin(_map)
    def map(
        self,
        *iterables: Iterable[Any],
        kwargs: Mapping[str, Any] = {},
        order_outputs: bool = True,
        return_exceptions: bool = False,
    ) -> Iterator[Any]:
        """Runs a call for each element (of each iterable, as Python's `map` does). The rest is as with `starmap`."""
        return self.starmap(
            zip(*iterables, strict=False),
            kwargs=kwargs,
            order_outputs=order_outputs,
            return_exceptions=return_exceptions,
        )

    async def _for_each(self, *iterables: Iterable[Any], ignore_exceptions: bool = False, **options: Any) -> None:
        async for _ in self._map(*iterables, order_outputs=False, return_exceptions=ignore_exceptions, **options):
            pass

    @twin(_for_each)
    def for_each(
        self, *iterables: Iterable[Any], kwargs: Mapping[str, Any] = {}, ignore_exceptions: bool = False
    ) -> None:
        """Like `map`, for calls whose results nobody wants; returns when all have ended."""
        for _ in self.map(*iterables, kwargs=kwargs, order_outputs=False, return_exceptions=ignore_exceptions):
            pass

    def _many(self) -> Target:
        """The target of many calls. Raises `UsageError` if a key would make them one."""
        target = self._target()
        if target.key:
            raise UsageError(
                f"With the key {target.key!r} every call of a map would be the same one.",
                "Use .spawn() with a key each.",
            )
        return target
