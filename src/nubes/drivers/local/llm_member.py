"""One engine of a fleet, in a process of its own: does what the router says over a socket, and tells what came of it.

Its KV lies in a file in shared memory, so that another engine reads the blocks of a sequence that moves there.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from nubes.drivers.local.peer import Peer
from nubes.drivers.local.wire import pack
from nubes.llm.cluster.member import Role, report
from nubes.llm.engine.choice import Choice, Job
from nubes.llm.engine.local import LocalEngine
from nubes.llm.scheduling import moving
from nubes.llm.scheduling.sequence import DECODE, MOVING, Sequence
from nubes.llm.spec import Delta, Request, Sampling


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine of a fleet is made of. `core`: the one it is pinned to; -1: all."""

    number: int
    model: str
    kv_files: dict[int, str]  # of all engines, by number
    blocks: int
    format: str = "int8"
    role: Role = "both"
    core: int = -1
    threads: int = 1
    policies: dict[str, str] = {}


class _Outbox(asyncio.Queue[Delta]):
    """Where a job's deltas go: straight to the router."""

    def __init__(self, id: int, tell: Callable[..., None]) -> None:
        super().__init__()
        self._id = id
        self._tell = tell

    def put_nowait(self, item: Delta) -> None:
        self._tell("delta", self._id, item)


class MemberEngine(LocalEngine):
    """An engine whose sequences come and go. All below the line is called by its own thread, between two steps."""

    role: Role = "both"

    def serve(self, loop: asyncio.AbstractEventLoop, tell: Callable[..., None]) -> None:
        self._loop = loop
        self._router = tell
        self._served: dict[int, Job] = {}
        self._opened: dict[int, int] = {}  # preemptions of a sequence when its handover began

    def _job(self, id: int, request: Request, said: list[int], state: str) -> Job:
        job = Job(request, self._loop)
        job.deltas = _Outbox(id, self._router)
        job.said, job.state = said, state
        return job

    def submit(self, id: int, request: Request, said: list[int], state: str) -> None:
        self._served[id] = job = self._job(id, request, said, state)
        self._send("arrive", job)

    def cancel(self, id: int) -> None:
        job = self._served.pop(id, None)
        if job is not None:
            self._send("cancel", job)

    def tell(self, *frame: Any) -> None:
        self._loop.call_soon_threadsafe(self._router, *frame)

    # -------------------------------------------------------------------------------------------------------------

    def _emit(self, sequences: list[Sequence], *rest: Any) -> None:
        super()._emit(sequences, *rest)
        if self.role != "prefill":
            return
        for id, job in list(self._served.items()):
            sequence = job.choices[0].sequence if job.choices else None
            if sequence is not None and sequence.state == DECODE and job.request.n == 1:
                moving.depart(self.scheduler, sequence)
                self.tell("prefilled", id, sequence.blocks, sequence.known, job.choices[0].chance)

    def _running(self, id: int) -> Choice | None:
        job = self._served.get(id)
        if job is None or job.request.n != 1 or not job.choices:
            return None
        sequence = job.choices[0].sequence
        same = self._opened.get(id, sequence.preemptions) == sequence.preemptions
        return job.choices[0] if sequence.state == DECODE and same else None

    def report(self) -> None:
        said = report(self.scheduler.state, sequences=True)
        ids = {job.choices[0].sequence.id: id for id, job in self._served.items() if job.choices and job.request.n == 1}
        said.sequences = [s for s in said.sequences if s.id in ids]
        for running in said.sequences:
            running.id = ids[running.id]
        self.tell("reported", said)

    def look(self, id: int, turn: int) -> None:
        choice = self._running(id)
        if choice is None:
            self._opened.pop(id, None)
            return self.tell("filled", id, turn, -1, 0, [])
        sequence = choice.sequence
        self._opened[id] = sequence.preemptions
        self.tell("filled", id, turn, sequence.context // self.runtime.block_size, sequence.known, sequence.blocks)

    def depart(self, id: int, turn: int) -> None:
        choice = self._running(id)
        self._opened.pop(id, None)
        if choice is None:
            return self.tell("departed", id, turn, -1, 0, [], "")
        sequence = choice.sequence
        moving.depart(self.scheduler, sequence)
        held = -(-sequence.context // self.runtime.block_size)
        self.tell("departed", id, turn, held, sequence.known, sequence.blocks, choice.chance)

    def stay(self, id: int) -> None:
        job = self._served.get(id)
        if job is not None and job.choices and job.choices[0].sequence.state == MOVING:
            moving.stay(self.scheduler, job.choices[0].sequence)

    def release(self, id: int) -> None:
        job = self._served.pop(id, None)
        if job is not None and job.choices:
            sequence = job.choices[0].sequence
            self._choices.pop(sequence.id, None)
            moving.release(self.scheduler, sequence, 0.0)

    def reserve(self, id: int, turn: int, blocks: int) -> None:
        ok = moving.reserve(self.scheduler, -id - 1, blocks)
        self.tell("reserved", id, turn, ok, self.scheduler.state.reserved.get(-id - 1, []))

    def unreserve(self, id: int) -> None:
        moving.unreserve(self.scheduler, -id - 1, 0.0)

    def land(self, id: int, turn: int, request: Request, said: list[int], state: str) -> None:
        """`said`: all it has generated. Its KV is in the blocks that were reserved."""
        reserved = self.scheduler.state.reserved
        if -id - 1 not in reserved:
            return
        job = self._job(id, request, said, state)
        choice = self._choice(job)
        if choice is None:
            return self.unreserve(id)
        self._served[id] = job
        reserved[choice.sequence.id] = reserved.pop(-id - 1)
        moving.land(self.scheduler, choice.sequence, request.arrived_s)
        self.tell("landed", id, turn)


class Member:
    """The process: frames in, the engine's thread, frames out."""

    def __init__(self, config: Config, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        from nubes.llm.checkpoint import load
        from nubes.llm.runtime.native import NativeRuntime

        self.config = config
        self.loop = loop
        checkpoint = load(config.model)
        runtime = NativeRuntime(
            checkpoint, config.format, config.blocks, threads=config.threads, kv_file=config.kv_files[config.number],  # type: ignore[arg-type]
        )  # fmt: skip
        self.engine = MemberEngine(checkpoint.name, runtime, checkpoint.tokens, **config.policies)  # type: ignore[arg-type]
        self.engine.role = config.role
        self.others: dict[int, Any] = {}  # KV of other engines
        self.copying: dict[int, asyncio.Task[None]] = {}
        self.ahead: dict[int, Job] = {}
        self.done = loop.create_future()
        self.peer = Peer(loop, sock, self.frame, lambda: self.done.set_result(None))
        self.engine.serve(loop, self.tell)
        self.tell("joined", report(self.engine.scheduler.state))

    def tell(self, *frame: Any) -> None:
        self.peer.send(pack(*frame))

    def frame(self, frame: list[Any]) -> None:
        kind, *arguments = frame
        getattr(self, f"on_{kind}")(*arguments)

    def on_submit(self, id: int, request: Any, said: list[int], state: str) -> None:
        self.engine.submit(id, msgspec.convert(request, Request), said, state)

    def on_cancel(self, id: int) -> None:
        self.engine.cancel(id)

    def on_report(self) -> None:
        self.engine.between(self.engine.report)

    def on_stats(self, ask: int) -> None:
        self.tell("stats", ask, self.engine.stats())

    def on_look(self, id: int, turn: int) -> None:
        self.engine.between(lambda: self.engine.look(id, turn))

    def on_depart(self, id: int, turn: int) -> None:
        self.engine.between(lambda: self.engine.depart(id, turn))

    def on_stay(self, id: int) -> None:
        self.engine.between(lambda: self.engine.stay(id))

    def on_release(self, id: int) -> None:
        self.engine.between(lambda: self.engine.release(id))

    def on_reserve(self, id: int, turn: int, blocks: int) -> None:
        self.engine.between(lambda: self.engine.reserve(id, turn, blocks))

    def on_unreserve(self, id: int) -> None:
        """Not before the copy has ended that still writes to these blocks."""
        task = self.copying.get(id)
        if task is not None:
            task.add_done_callback(lambda _: self.on_unreserve(id))
            return
        ahead = self.ahead.pop(id, None)
        if ahead is not None:
            self.engine._send("cancel", ahead)
        self.engine.between(lambda: self.engine.unreserve(id))

    def on_copy(self, id: int, turn: int, source: int, blocks: list[int], targets: list[int]) -> None:
        task = self.loop.create_task(asyncio.to_thread(self.copy, source, blocks, targets))
        self.copying[id] = task

        def copied(_: object) -> None:
            del self.copying[id]
            self.tell("copied", id, turn)

        task.add_done_callback(copied)

    def copy(self, source: int, blocks: list[int], targets: list[int]) -> None:
        from nubes.llm.runtime import memory

        kv = self.engine.runtime.kv
        if source not in self.others:
            self.others[source] = memory.mapped(self.config.kv_files[source], kv.shape, kv.dtype)
        other = self.others[source]
        for block, target in zip(blocks, targets, strict=True):
            kv[target] = other[block]

    def on_land(self, id: int, turn: int, request: Any, said: list[int], state: str) -> None:
        wanted = msgspec.convert(request, Request)
        self.engine.between(lambda: self.engine.land(id, turn, wanted, said, state))

    def on_warm(self, id: int, turn: int, tokens: list[int], request: Any) -> None:
        """Computes KV of these tokens, which stays for the one who comes with them."""
        wanted = msgspec.convert(request, Request)
        short = Request(
            id=f"{wanted.id} ahead", prompt=tokens, sampling=Sampling(max_tokens=1, temperature=0.0, ignore_eos=True),
            adapter=wanted.adapter, cache_salt=wanted.cache_salt, arrived_s=wanted.arrived_s,
        )  # fmt: skip
        job = Job(short, self.loop)

        def told(_: str, __: int, delta: Delta) -> None:
            if self.ahead.pop(id, None) is job:
                self.tell("warmed", id, turn, len(tokens) if delta.finish in ("length", "stop") else -1)

        job.deltas = _Outbox(id, told)
        self.ahead[id] = job
        self.engine._send("arrive", job)


async def run(config: Config, sock: socket.socket) -> None:
    member = Member(config, sock, asyncio.get_running_loop())
    await member.done
    os._exit(0)  # the router is gone: nobody waits for anything


def main() -> None:
    config = msgspec.json.decode(sys.argv[1], type=Config)
    if config.core >= 0:
        os.sched_setaffinity(0, {config.core})
    asyncio.run(run(config, socket.socket(fileno=int(sys.argv[2]))))


if __name__ == "__main__":
    main()
