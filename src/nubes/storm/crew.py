"""Workers on all cores, and the search for the smallest day that fails."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

import nubes
from nubes.kernel import errors
from nubes.kernel.errors import NubesError
from nubes.storm import shrink
from nubes.storm.messages import Answer, Days, Died, Played, Ready, Refused, Replay, Replayed, Request, Shrink, Shrunk
from nubes.storm.spec import Outcome, Schedule

BATCH = 50  # days of one request
CANDIDATES = 4  # days that failed, of which the one that shrinks most is told of
SOURCE = str(Path(nubes.__file__).parents[1])


class Found(msgspec.Struct, frozen=True):
    """The smallest schedule, what it was shrunk from, and its story."""

    day: int
    before: int  # faults of that day
    schedule: Schedule
    outcome: Outcome


class Search(msgspec.Struct, frozen=True):
    """What became of a search."""

    days: int
    faults: int
    operations: int
    shrinking_days: int
    found: Found | None


class Worker:
    """One process. Used by one thread at a time."""

    def __init__(self, what: str) -> None:
        env = {name: value for name, value in os.environ.items() if not name.startswith("NUBES_")}
        env |= {"PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(filter(None, [SOURCE, env.get("PYTHONPATH", "")]))}
        argv = [sys.executable, "-P", "-m", "nubes.storm.worker", what]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        self.ready: Ready | None = None

    def ask(self, request: Request) -> Answer:
        """Raises what the app's import raises, as `NubesError`."""
        assert self._process.stdin is not None
        if self.ready is None:
            first = self._read()
            if isinstance(first, Refused):
                raise _error(first)
            assert isinstance(first, Ready)
            self.ready = first
        self._process.stdin.write(msgspec.json.encode(request) + b"\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Answer:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise NubesError("A worker of the storm ended.", "Run it again; what it printed stands above.")
        return msgspec.json.decode(line, type=Answer)  # type: ignore[no-any-return]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


class Crew:
    """Several workers of one app."""

    def __init__(self, what: str, size: int) -> None:
        self.workers = [Worker(what) for _ in range(size)]
        self._free = deque(self.workers)
        self._threads = ThreadPoolExecutor(size)

    def ask(self, request: Request) -> Answer:
        worker = self._free.popleft()
        try:
            return worker.ask(request)
        finally:
            self._free.append(worker)

    def submit(self, request: Request) -> Future[Answer]:
        return self._threads.submit(self.ask, request)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self._threads.shutdown(cancel_futures=True)

    # -- the search ----------------------------------------------------------------------------------------------------

    def search(self, first: int, days: int, progress: Callable[[int, int], None]) -> Search:
        """Plays days until one fails, and shrinks it. The outcome does not depend on how many workers there are.

        `progress` is told (days played, days that failed). Raises `NubesError` when a day ends its process.
        """
        played = faults = operations = 0
        requests = iter(Days(begin, min(BATCH, first + days - begin)) for begin in range(first, first + days, BATCH))
        under_way: deque[Future[Answer]] = deque()
        for request in requests:
            under_way.append(self.submit(request))
            if len(under_way) >= 2 * len(self.workers):
                break
        while under_way:
            answer = _alive(under_way.popleft().result())
            assert isinstance(answer, Played)
            played, faults, operations = played + answer.days, faults + answer.faults, operations + answer.operations
            progress(played, len(answer.failed))
            if answer.failed:
                for future in under_way:
                    future.cancel()
                found, more = self._smallest(answer.failed)
                return Search(played, faults, operations, more, found)
            following = next(requests, None)
            if following is not None:
                under_way.append(self.submit(following))
        return Search(played, faults, operations, 0, None)

    def _smallest(self, failed: tuple[Schedule, ...]) -> tuple[Found, int]:
        candidates = sorted(failed, key=lambda one: (len(one.faults), one.seed))[:CANDIDATES]
        futures = [self.submit(Shrink(one)) for one in candidates]
        shrunk = [one for one in (_alive(future.result()) for future in futures) if isinstance(one, Shrunk)]
        best, origin = min(zip(shrunk, candidates, strict=True), key=lambda pair: shrink.size(pair[0].schedule))
        outcome = self.replay(best.schedule)
        return Found(origin.seed, len(origin.faults), best.schedule, outcome), sum(one.days for one in shrunk)

    def replay(self, schedule: Schedule) -> Outcome:
        """Plays one day again, with its story."""
        answer = _alive(self.submit(Replay(schedule)).result())
        assert isinstance(answer, Replayed)
        return answer.outcome


def _error(refused: Refused) -> NubesError:
    kind: type[NubesError] = getattr(errors, refused.kind, NubesError)
    return kind(refused.message, refused.hint)


def _alive(answer: Any) -> Any:
    if isinstance(answer, Refused):
        raise _error(answer)
    if isinstance(answer, Died):
        raise NubesError(
            f"Day {answer.day} cannot be played to its end: {answer.how}.",
            f"Look at it alone: --seed {answer.day} --days 1.",
        )
    return answer


@contextmanager
def crew(what: str, size: int = 0) -> Iterator[Crew]:
    """Workers on all cores, or `size` of them."""
    made = Crew(what, size or len(os.sched_getaffinity(0)))
    try:
        yield made
    finally:
        made.close()
