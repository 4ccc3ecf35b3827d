"""Arbitrary Python functions over many items: `Executor.map`, as PyWren made it known (SoCC 2017).

One generic function of the cloud runs them all. Code is stored once under its hash; with `submit="storage"` arguments
and results go through the data folder too, so that a job outlives the process that started it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ALL_COMPLETED, Future
from pathlib import Path
from typing import Any

from nubes import client as clients
from nubes.api.calling import Calling
from nubes.api.function_call import FunctionCall
from nubes.app import App
from nubes.functions.spec import Retries
from nubes.jobs import Job, direct, dumps, failure, put, stored, unwrap
from nubes.kernel.errors import CallFailed, CallTimeout, UsageError

POLL_S = 0.02
PATIENCE_S = 1.0  # how often calls are looked at that have left no result; the second time they are run again
ATTEMPTS = 5


def map(
    fn: Callable[..., Any],
    *iterables: Iterable[Any],
    order_outputs: bool = True,
    return_exceptions: bool = False,
    instances: int = 0,
) -> Iterator[Any]:
    """Python's `map` in the cloud, for a function that need not be declared; yields results in order, or as they come.

    The iterables are taken as the results are. What a call raises is raised when its turn comes, and cancels the rest;
    with `return_exceptions` it is yielded. At most `instances` run at a time (0: as many as fit).
    """
    if isinstance(fn, Calling):
        yield from fn.map(*iterables, order_outputs=order_outputs, return_exceptions=return_exceptions)
        return
    with Executor(instances=instances) as executor:
        code = executor.stored_code(fn)
        inputs = ((*code, args) for args in zip(*iterables, strict=False))
        calls = executor.direct.starmap(inputs, order_outputs=order_outputs, return_exceptions=return_exceptions)
        for attempt in calls:
            if isinstance(attempt, Exception):
                yield attempt
            elif return_exceptions and not attempt[0]:
                yield failure(attempt)
            else:
                yield unwrap(attempt)


class Executor:
    """Runs functions that were never declared, any number of them, and gives futures of `concurrent.futures`.

    `submit="direct"` hands calls to instances at once; `"storage"` makes a job that survives a crash of this process
    and is continued by a `map` with the same job id. At most `instances` run at a time (0: as many as fit),
    with `cpu` cores and `timeout` ("5m", or seconds) each.
    """

    def __init__(
        self, submit: str = "direct", instances: int = 0, cpu: float = 0.125, timeout: str | float = 300
    ) -> None:
        if submit not in ("direct", "storage"):
            raise UsageError(f"submit={submit!r} is unknown.", 'It is "direct" or "storage".')
        self.submit = submit
        self.app = App(f"executor-{submit}-{instances}-{cpu:g}-{timeout}")
        options: dict[str, Any] = {"max_instances": instances, "cpu": cpu, "timeout": timeout}
        retries = Retries(ATTEMPTS - 1, initial_delay_s=0.0)  # of calls whose instance died: the rest do not fail
        self.direct = self.app.function(name="direct", retries=retries, **options)(direct)
        self.stored = self.app.function(name="stored", **options)(stored)
        self.client = clients.connect()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._closed = False
        if submit == "direct":
            self.app.deployment.hold()
        elif self.client.ask("functions", app=self.app.name):
            self.app.deployment.attach()
        else:
            self.app.deployment.keep()  # it stays, as its jobs do

    def call_async(self, fn: Callable[..., Any], *args: Any) -> Future[Any]:
        """The future of one call of `fn`."""
        return self.map(fn, *([arg] for arg in args))[0] if args else self.map(lambda _: fn(), [None])[0]

    def map(self, fn: Callable[..., Any], *iterables: Iterable[Any], job: str = "") -> list[Future[Any]]:
        """A future for each item. With `submit="storage"`, a job of that id is continued: what is finished stays."""
        items = list(zip(*iterables, strict=False))
        folder, digest = self.stored_code(fn)
        if self.submit == "direct":
            if job:
                raise UsageError(f"job={job!r} needs storage.", 'Make the executor with submit="storage".')
            return [self._submit(self._direct(folder, digest, args)) for args in items]
        made = Job(Path(folder) / (job or os.urandom(6).hex()))
        made.create(digest, items)
        futures: list[Future[Any]] = [Future() for _ in items]
        self._submit(self._follow(made, futures))
        return futures

    @staticmethod
    def wait(
        futures: Iterable[Future[Any]], timeout: float | None = None, return_when: str = ALL_COMPLETED
    ) -> tuple[set[Future[Any]], set[Future[Any]]]:
        """Waits until all are done, the first is (`FIRST_COMPLETED`), or `timeout` seconds passed: (done, not done)."""
        done, pending = concurrent.futures.wait(list(futures), timeout, return_when)
        return done, pending

    def close(self) -> None:
        """Lets go: calls of direct jobs that still run are cancelled, stored jobs go on."""
        if not self._closed:
            self._closed = True
            asyncio.run_coroutine_threadsafe(self._quit(), self._loop).result()
            self._thread.join()
            self._loop.close()
            self.app.deployment.release()

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _quit(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        self._loop.call_soon(self._loop.stop)

    def _submit(self, coroutine: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _jobs(self) -> Path:
        folder = Path(self.client.folder) / "jobs"
        (folder / "code").mkdir(parents=True, exist_ok=True)
        return folder

    def stored_code(self, fn: Callable[..., Any]) -> tuple[str, str]:
        """Stores a function's code, once; where instances find it: the jobs' folder and the code's hash."""
        code = dumps(fn)
        digest = hashlib.sha256(code).hexdigest()[:32]
        folder = self._jobs()
        if not (folder / "code" / digest).exists():
            put(folder / "code" / digest, code)
        return str(folder), digest

    async def _direct(self, folder: str, digest: str, args: tuple[Any, ...]) -> Any:
        return unwrap(await self.direct.remote.aio(folder, digest, args))

    async def _follow(self, job: Job, futures: list[Future[Any]]) -> None:
        """Calls what has no result, lists what has come, and calls again what was lost."""
        attempts = [0] * len(futures)
        calls: dict[int, Any] = {}
        ended: dict[int, float] = {}
        waiting = set(range(len(futures)))
        first, looked = True, time.monotonic()
        while waiting:
            for index in job.finished() & waiting:
                waiting.discard(index)
                value = job.result(index)
                if value[0]:
                    futures[index].set_result(value[1])
                else:
                    futures[index].set_exception(failure(value))
            lost = set(waiting) if first else set()
            if not first and time.monotonic() > looked + PATIENCE_S:
                looked = time.monotonic()
                lost = {index for index in waiting if await self._lost(index, calls, ended)}
            first = False
            for index in sorted(lost):
                attempts[index] += 1
                ended.pop(index, None)
                if attempts[index] > ATTEMPTS:
                    waiting.discard(index)
                    futures[index].set_exception(CallFailed(f"Item {index} ended {ATTEMPTS} times without a result."))
            todo = sorted(lost & waiting)
            made = await asyncio.gather(*(self._call(job, index, attempts[index]) for index in todo))
            calls.update(zip(todo, made, strict=True))
            await asyncio.sleep(POLL_S)

    async def _call(self, job: Job, index: int, attempt: int) -> FunctionCall:
        """The same key gives the same call, whoever asks: a driver that comes back adds none."""
        keyed = self.stored.with_key(f"{job.folder.name}/{index}/{attempt}")
        call: FunctionCall = await keyed.spawn.aio(str(job.folder), index)
        return call

    async def _lost(self, index: int, calls: dict[int, Any], ended: dict[int, float]) -> bool:
        """Whether the item's call ended some time ago and left no result."""
        if index not in ended:
            try:
                await calls[index].get.aio(timeout=0)
            except CallTimeout:
                return False
            except CallFailed:
                pass
            ended[index] = time.monotonic()
            return False  # its result may be listed by the next time
        return True
