"""What a router knows of the requests that its engines serve, and how their answers reach those who wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from nubes.llm.spec import Delta, Request


class Asked:
    """A request, and what it has by now."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.deltas: asyncio.Queue[Delta] = asyncio.Queue()
        self.said: list[int] = []
        self.open = request.n  # answers that have not ended
        self.left = request.n  # and those whose end was not taken yet
        self.source: list[int] = []  # its blocks where it is, and where it goes
        self.target: list[int] = []

    @property
    def known(self) -> int:
        return len(self.request.prompt) + len(self.said)

    def end(self, delta: Delta) -> None:
        """All its answers end like this."""
        for index in range(self.open):
            self.deltas.put_nowait(msgspec.structs.replace(delta, index=index))


class Answers:
    """What a request gets, as it comes. Left early, by `aclose` or by nobody holding it, `left` is told."""

    def __init__(self, asked: Asked, left: Callable[[], None]) -> None:
        self._asked = asked
        self._left = left

    def __aiter__(self) -> Answers:
        return self

    async def __anext__(self) -> Delta:
        asked = self._asked
        if not asked.left:
            raise StopAsyncIteration
        try:
            delta = await asked.deltas.get()
        except BaseException:  # whoever waited was cancelled
            await self.aclose()
            raise
        if delta.finish is not None:
            asked.left -= 1
            if not asked.left:
                await self.aclose()
        return delta

    async def aclose(self) -> None:
        self._asked.left = 0
        self._left()

    def __del__(self) -> None:
        if self._asked.left:
            self._left()
