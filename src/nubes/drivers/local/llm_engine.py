"""An engine whose sequences come and go: what a member of a fleet does between two of its steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from nubes.llm.cluster.member import Role, report
from nubes.llm.engine.choice import Choice, Job
from nubes.llm.engine.local import LocalEngine
from nubes.llm.scheduling import moving
from nubes.llm.scheduling.sequence import DECODE, MOVING, Sequence
from nubes.llm.spec import Delta, Request


class Outbox(asyncio.Queue[Delta]):
    """Where a job's deltas go: straight to whoever is told."""

    def __init__(self, tell: Callable[[Delta], None]) -> None:
        super().__init__()
        self._tell = tell

    def put_nowait(self, item: Delta) -> None:
        self._tell(item)


class MemberEngine(LocalEngine):
    """Serves the requests of a router, by its numbers. All below the line is called by the engine's own thread."""

    role: Role = "both"

    def serve(self, loop: asyncio.AbstractEventLoop, tell: Callable[..., None]) -> None:
        self._loop = loop
        self._router = tell
        self._served: dict[int, Job] = {}
        self._opened: dict[int, int] = {}  # preemptions of a sequence when its handover began

    def job(self, id: int, request: Request, said: list[int], tell: Callable[[Delta], None] | None = None) -> Job:
        """`said`: tokens it has from elsewhere. Deltas go to the router if nobody else is told."""
        job = Job(request, self._loop)
        job.said = said
        if request.adapter:
            job.adapter = self.store.get(request.adapter)

        def told(delta: Delta) -> None:
            if delta.finish is not None:
                job.left -= 1
                if not job.left and self._served.get(id) is job:
                    self._served.pop(id, None)
            self._router("delta", id, delta)

        job.deltas = Outbox(tell or told)
        return job

    def submit(self, id: int, request: Request, said: list[int]) -> None:
        self._served[id] = job = self.job(id, request, said)
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
                self.tell("prefilled", id, sequence.blocks, sequence.known)

    def _running(self, id: int) -> Choice | None:
        job = self._served.get(id)
        if job is None or job.request.n != 1 or not job.choices:
            return None
        sequence = job.choices[0].sequence
        same = self._opened.get(id, sequence.preemptions) == sequence.preemptions
        return job.choices[0] if sequence.state == DECODE and same else None

    def report(self) -> None:
        said = report(self.scheduler.state, sequences=True)
        served = list(self._served.items())
        ids = {job.choices[0].sequence.id: id for id, job in served if job.choices and job.request.n == 1}
        said.sequences = [s for s in said.sequences if s.id in ids]
        for running in said.sequences:
            running.id = ids[running.id]
        self.tell("reported", said, self.stats())

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
            return self.tell("departed", id, turn, -1, 0, [])
        sequence = choice.sequence
        moving.depart(self.scheduler, sequence)
        held = -(-sequence.context // self.runtime.block_size)
        self.tell("departed", id, turn, held, sequence.known, sequence.blocks)

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

    def land(self, id: int, turn: int, request: Request, said: list[int]) -> None:
        """`said`: all it has generated. Its KV is in the blocks that were reserved."""
        reserved = self.scheduler.state.reserved
        if -id - 1 not in reserved:
            return
        job = self.job(id, request, said)
        choice = self._choice(job)
        if choice is None:
            return self.unreserve(id)
        self._served[id] = job
        reserved[choice.sequence.id] = reserved.pop(-id - 1)
        moving.land(self.scheduler, choice.sequence, request.arrived_s)
        self.tell("landed", id, turn)
