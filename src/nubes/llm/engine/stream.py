"""Deltas on their way from the engine's thread to those who wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from nubes.llm.engine.choice import Job
from nubes.llm.spec import Delta


class Stream:
    """What a request gets, as it comes. `left` is told when nobody waits any more: at its end, or left early."""

    def __init__(self, job: Job, left: Callable[[Job], None]) -> None:
        self._job = job
        self._left = left

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Delta:
        job = self._job
        if not job.left:
            raise StopAsyncIteration
        try:
            delta = await job.deltas.get()
        except BaseException:  # whoever waited was cancelled
            await self.aclose()
            raise
        if delta.finish is not None:
            job.left -= 1
            if not job.left:
                await self.aclose()
        return delta

    async def aclose(self) -> None:
        self._left(self._job)
        self._job.left = 0

    def __del__(self) -> None:
        self._left(self._job)


def hand_over(told: Iterable[tuple[Job, Delta]]) -> list[Job]:
    """Hands deltas over to the event loops of those who wait: one call for each loop. Whose loop is closed."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Job, Delta]]] = {}
    for job, delta in told:
        by_loop.setdefault(job.loop, []).append((job, delta))
    gone: list[Job] = []
    for loop, batch in by_loop.items():
        try:
            loop.call_soon_threadsafe(_put, batch)
        except RuntimeError:
            gone += [job for job, _ in batch]
    return gone


def _put(batch: list[tuple[Job, Delta]]) -> None:
    for job, delta in batch:
        job.deltas.put_nowait(delta)
