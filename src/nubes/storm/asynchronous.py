"""The client of simulated processes, for their event loops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

from nubes.client.connection import Target
from nubes.client.window import Inputs
from nubes.storm import loops

if TYPE_CHECKING:
    from nubes.storm.client import SimulatedClient


class AsyncSimulatedClient:
    """The methods of `SimulatedClient` for event loops: each runs in a task of its own, and the loop goes on."""

    def __init__(self, client: SimulatedClient) -> None:
        self._client = client

    async def _in_task(self, work: Callable[[], Any]) -> Any:
        return await loops.beside(self._client.world.tasks, work, asyncio.get_running_loop())

    async def ask(self, name: str, /, **arguments: Any) -> Any:
        return await self._in_task(lambda: self._client.ask(name, **arguments))

    async def remote(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return await self._in_task(lambda: self._client.remote(target, args, kwargs))

    async def spawn(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        return int(await self._in_task(lambda: self._client.spawn(target, args, kwargs)))

    async def fetch(self, call: int, timeout: float | None = None) -> Any:
        return await self._in_task(lambda: self._client.fetch(call, timeout))

    async def stream(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncIterator[Any]:
        async for item in self._each(self._client.stream(target, args, kwargs)):
            yield item

    async def map(self, target: Target, inputs: Inputs, ordered: bool, return_exceptions: bool) -> AsyncIterator[Any]:
        async for item in self._each(self._client.map(target, inputs, ordered, return_exceptions)):
            yield item

    async def _each(self, items: Iterator[Any]) -> AsyncIterator[Any]:
        end = object()
        while (item := await self._in_task(lambda: next(items, end))) is not end:
            yield item

    def close(self) -> None:
        """Nothing is held."""
