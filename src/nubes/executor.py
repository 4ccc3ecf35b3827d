"""Arbitrary Python functions over many items: `Executor.map`, as PyWren made it known (SoCC 2017).

One generic function of the cloud runs them all. Code is stored once under its hash; with `submit="storage"` arguments
and results go through the data folder too, so that a job outlives the process that started it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import os
import pickle
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ALL_COMPLETED, Future
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from nubes import client as clients
from nubes.api.calls import FunctionCall
from nubes.app import App
from nubes.functions.spec import Retries
from nubes.kernel.errors import CallFailed, CallTimeout, RemoteError, UsageError

POLL_S = 0.02
PATIENCE_S = 1.0  # how often calls are looked at that have left no result; the second time they are run again
ATTEMPTS = 5

_INSTALLED = tuple(sysconfig.get_path(kind) + os.sep for kind in ("stdlib", "platstdlib", "purelib", "platlib"))
_code: dict[str, Callable[..., Any]] = {}


def map(fn: Callable[..., Any], *iterables: Iterable[Any], instances: int = 0) -> Iterator[Any]:
    """`fn` over items, in the cloud; yields results in order. What a call raises is raised when its turn comes."""
    with Executor(instances=instances) as executor:
        for future in executor.map(fn, *iterables):
            yield future.result()


class Executor:
    """Runs functions that were never declared.

    `submit="direct"` hands calls to instances at once; `"storage"` makes a job that survives a crash of this process
    and is continued by a `map` with the same job id. At most `instances` run at a time (0: as many as fit).
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
        self.direct = self.app.function(name="direct", retries=retries, **options)(_direct)
        self.stored = self.app.function(name="stored", **options)(_stored)
        self.client = clients.connect()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._closed = False
        if submit == "direct":
            self.app._deploy_ephemeral()
        elif not self.client.ask("functions", app=self.app.name):
            self.app.deploy()  # it stays, as its jobs do
        self.app._running = True

    def call_async(self, fn: Callable[..., Any], *args: Any) -> Future[Any]:
        """One call."""
        return self.map(fn, *([arg] for arg in args))[0] if args else self.map(lambda _: fn(), [None])[0]

    def map(self, fn: Callable[..., Any], *iterables: Iterable[Any], job: str = "") -> list[Future[Any]]:
        """A future for each item. With `submit="storage"`, a job of that id is continued: what is finished stays."""
        items = list(zip(*iterables, strict=False))
        digest = self._upload(dumps(fn))
        if self.submit == "direct":
            if job:
                raise UsageError(f"job={job!r} needs storage.", 'Make the executor with submit="storage".')
            folder = str(self._jobs())
            return [self._submit(self._direct(folder, digest, args)) for args in items]
        made = Job(self._jobs() / (job or os.urandom(6).hex()))
        made.create(digest, items)
        futures: list[Future[Any]] = [Future() for _ in items]
        self._submit(self._follow(made, futures))
        return futures

    @staticmethod
    def wait(
        futures: Iterable[Future[Any]], timeout: float | None = None, return_when: str = ALL_COMPLETED
    ) -> tuple[set[Future[Any]], set[Future[Any]]]:
        """(done, not done), once all are, or the first is (`FIRST_COMPLETED`), or `timeout` seconds passed."""
        done, pending = concurrent.futures.wait(list(futures), timeout, return_when)
        return done, pending

    def close(self) -> None:
        """Lets go: calls of direct jobs that still run are cancelled, stored jobs go on."""
        if not self._closed:
            self._closed = True
            asyncio.run_coroutine_threadsafe(self._quit(), self._loop).result()
            self._thread.join()
            self._loop.close()
            if self.app._held is not None:
                self.app._held.stream.close()
                self.app._held = None

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

    def _upload(self, code: bytes) -> str:
        digest = hashlib.sha256(code).hexdigest()[:32]
        path = self._jobs() / "code" / digest
        if not path.exists():
            put(path, code)
        return digest

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


class Job:
    """A stored job: code hash and arguments in, one result file an item out. A result, once there, never changes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self, digest: str, items: list[tuple[Any, ...]]) -> None:
        """Stores a new job, or checks that this one is the same size as what is stored."""
        if (self.folder / "job").exists():
            stored = len(self.spans()[1])
            if stored != len(items):
                raise UsageError(
                    f"Job {self.folder.name!r} has {stored} items, not {len(items)}.", "Give it another id."
                )
            return
        (self.folder / "results").mkdir(parents=True, exist_ok=True)
        pickled = [dumps(args) for args in items]
        put(self.folder / "arguments", b"".join(pickled))
        put(self.folder / "job", pickle.dumps((digest, [len(one) for one in pickled])))

    def spans(self) -> tuple[str, list[int]]:
        """The code's hash, and the length of each item's arguments."""
        digest, lengths = pickle.loads((self.folder / "job").read_bytes())
        return digest, lengths

    def arguments(self, index: int) -> tuple[str, tuple[Any, ...]]:
        digest, lengths = self.spans()
        with open(self.folder / "arguments", "rb") as file:
            file.seek(sum(lengths[:index]))
            args: tuple[Any, ...] = pickle.loads(file.read(lengths[index]))
        return digest, args

    def finished(self) -> set[int]:
        """The items that have a result: one listing, however many there are."""
        return {int(name) for name in os.listdir(self.folder / "results") if name.isdigit()}

    def result(self, index: int) -> tuple[Any, ...]:
        value: tuple[Any, ...] = pickle.loads((self.folder / "results" / str(index)).read_bytes())
        return value

    def answer(self, index: int, value: bytes) -> None:
        """Stores a result, unless there is one already: of two runs of an item one is seen."""
        path = self.folder / "results" / str(index)
        temporary = path.with_name(f"{index}.{os.getpid()}")
        temporary.write_bytes(value)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        temporary.unlink()


# -- in the instance -----------------------------------------------------------------------------------------------


def _direct(jobs: str, digest: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return attempt(Path(jobs), digest, args)


def _stored(folder: str, index: int) -> None:
    job = Job(Path(folder))
    if index not in job.finished():
        digest, args = job.arguments(index)
        job.answer(index, dumps(attempt(job.folder.parent, digest, args)))


def attempt(jobs: Path, digest: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """(True, value) or (False, exception or None, its text, its traceback)."""
    try:
        if digest not in _code:
            _code[digest] = cloudpickle.loads((jobs / "code" / digest).read_bytes())
        return True, _code[digest](*args)
    except Exception as error:
        text = traceback.format_exc()
        try:
            cloudpickle.loads(dumps(error))
        except Exception:
            return False, None, f"{type(error).__name__}: {error}", text
        return False, error, "", text


def unwrap(value: tuple[Any, ...]) -> Any:
    """The value of an attempt; raises what it raised."""
    if value[0]:
        return value[1]
    raise failure(value)


def failure(value: tuple[Any, ...]) -> BaseException:
    """The exception of an attempt that failed, with its remote traceback as a note."""
    _, error, summary, text = value
    raised: BaseException = error if error is not None else RemoteError(summary)
    raised.add_note(text)
    return raised


# -- code ----------------------------------------------------------------------------------------------------------


def dumps(value: Any) -> bytes:
    """Pickles with closures, lambdas and the modules the user wrote: all that an installed package does not bring."""
    registered = [module for module in list(sys.modules.values()) if _is_local(module)]
    for module in registered:
        cloudpickle.register_pickle_by_value(module)
    try:
        data: bytes = cloudpickle.dumps(value)
        return data
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)


def _is_local(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    name = getattr(module, "__name__", "")
    if not file or name in ("__main__", "") or name.partition(".")[0] == "nubes" or sys.modules.get(name) is not module:
        return False
    if name in cloudpickle.list_registry_pickle_by_value():
        return False
    return not file.startswith(_INSTALLED) and "site-packages" not in file


def put(path: Path, data: bytes) -> None:
    """A file that is there as a whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
