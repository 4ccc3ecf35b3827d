"""The processes of a fleet of engines: started, numbered, ended, and the files with their KV."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import msgspec

from nubes.drivers.local.llm_member import Config
from nubes.drivers.local.llm_nursery import Nursery, Plan
from nubes.drivers.local.peer import Peer
from nubes.kernel.errors import NubesError
from nubes.llm.cluster.member import Role
from nubes.llm.engine.opening import Loaded
from nubes.llm.live import Stats
from nubes.llm.spec import MOST_REPLICAS

COUNTERS = ("prefix_queries", "prefix_hits", "preemptions", "prompt_tokens", "generation_tokens", "steps")


class Process:
    """The router's end of an engine."""

    def __init__(self, peer: Peer, role: Role, joined: asyncio.Future[None]) -> None:
        self.peer = peer
        self.role = role
        self.joined = joined  # done when it is ready
        self.pid = 0
        self.stats = Stats()  # as it told last
        self.asked_s = 0.0  # since when it owes an answer; 0: it does not


class Processes:
    """By number. Numbers are never used again; what is left of one by `MOST_REPLICAS` is the place of its KV.

    `frame` is told of all that engines say, `gone` of each that was ready and has ended.
    """

    def __init__(
        self, plan: Plan, loaded: Loaded | None, cores: tuple[int, ...], policies: dict[str, str],
        frame: Callable[[int, list[Any]], None], gone: Callable[[int], None],
    ) -> None:  # fmt: skip
        self._nursery = Nursery(plan, loaded)
        self._cores = cores
        self._policies = policies
        self._frame = frame
        self._gone = gone
        self._memory: dict[int, int] = {}  # place -> a file in memory
        self._born = [0] * MOST_REPLICAS  # engines that had each place
        self._processes: dict[int, Process] = {}
        self._past = Stats()  # counters of those that are gone
        self._alone_s = monotonic()  # since when there is none, if there is none

    def __getitem__(self, number: int) -> Process:
        return self._processes[number]

    def get(self, number: int) -> Process | None:
        return self._processes.get(number)

    def there(self) -> Iterator[Process]:
        """Those that are ready."""
        return (process for process in self._processes.values() if process.pid)

    def stats(self, now: float) -> Stats:
        """The sum over those that are ready, with the counters of those that are gone.

        Stalled: the longest time that one has owed an answer, or that there is none.
        """
        total, there = msgspec.structs.replace(self._past), list(self.there())
        for process in there:
            for name in Stats.__struct_fields__:
                setattr(total, name, getattr(total, name) + getattr(process.stats, name))
        owed = [now - process.asked_s for process in there if process.asked_s]
        total.stalled_s = max(owed, default=0.0) if there else now - self._alone_s
        return total

    def kv_file(self, number: int) -> str:
        return f"/proc/{os.getpid()}/fd/{self._memory[number % MOST_REPLICAS]}"

    def _number(self) -> int:
        taken = {number % MOST_REPLICAS for number in self._processes}
        place = next((place for place in range(MOST_REPLICAS) if place not in taken), None)
        if place is None:
            raise NubesError(f"There are {MOST_REPLICAS} engines already.")
        if place not in self._memory:
            self._memory[place] = os.memfd_create(f"nubes-kv-{place}")
        self._born[place] += 1
        return place + MOST_REPLICAS * (self._born[place] - 1)

    async def start(self, loop: asyncio.AbstractEventLoop, role: Role) -> None:
        """Returns when there is one more. Raises `NubesError` if it ends before."""
        number = self._number()
        place = number % MOST_REPLICAS
        core = self._cores[place] if place < len(self._cores) else -1
        config = Config(number=number, kv_file=self.kv_file(number), role=role, core=core, policies=self._policies)
        ours, theirs = socket.socketpair()
        with theirs:
            self._nursery.bear(msgspec.json.encode(config), theirs)
        joined: asyncio.Future[None] = loop.create_future()
        peer = Peer(loop, ours, lambda frame: self._frame(number, frame), lambda: self._ended(number))
        self._processes[number] = Process(peer, role, joined)
        await joined

    def _ended(self, number: int) -> None:
        process = self._processes.pop(number, None)
        if process is None:
            return  # it was stopped
        if process.joined.done():
            self._alone_s = monotonic()
            for name in COUNTERS:
                setattr(self._past, name, getattr(self._past, name) + getattr(process.stats, name))
            self._gone(number)
        else:
            process.joined.set_exception(NubesError("An engine ended while it started."))

    def stop(self, number: int) -> None:
        self._processes.pop(number).peer.close()

    async def close(self) -> None:
        """Ends all of them, and the nursery."""
        processes, self._processes = self._processes, {}
        for process in processes.values():
            process.peer.close()
        await asyncio.to_thread(self._nursery.close)
        for fd in self._memory.values():
            os.close(fd)
        self._memory.clear()
