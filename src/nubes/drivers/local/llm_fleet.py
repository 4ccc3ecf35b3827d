"""The router of a fleet of engines, each in a process of its own. To those who ask it is one engine."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
from collections.abc import Mapping
from collections.abc import Sequence as Many
from time import monotonic
from typing import Any

import msgspec

from nubes.drivers.local.llm_answers import Answers, Asked
from nubes.drivers.local.llm_frames import frame_of, receiver
from nubes.drivers.local.llm_nursery import Plan
from nubes.drivers.local.llm_processes import Processes
from nubes.drivers.local.wire import pack
from nubes.kernel.errors import NotFound, NubesError, Overloaded
from nubes.llm.cluster import events as e
from nubes.llm.cluster.fleet import Fleet
from nubes.llm.cluster.member import Report, Role
from nubes.llm.cluster.seams import Ask
from nubes.llm.engine.asking import check
from nubes.llm.engine.opening import Loaded
from nubes.llm.errors import ContextTooLong
from nubes.llm.live import Stats
from nubes.llm.spec import Delta, Request

log = logging.getLogger("nubes.llm")

LOST = "The engine was lost in the middle of several answers. Send the request again."
BEAT_S = 0.05  # so often are engines asked how they are, while there is work
CALM = 3  # and so many times more when there is none
RETRY_S = 0.1  # until the next attempt to start an engine, and ever longer
RETRY_MOST_S = 5.0
KEPT = 4096  # figures of moves


class EngineFleet:
    """Implements `nubes.llm.live.Engine` over `len(roles)` processes; `start` it first, in the loop that uses it.

    `cores`: each engine is pinned to the one at its place. `policies`: of the engines, each of which has `blocks` of
    KV, or `kv_bytes`. `loaded`: the model, if this process has it, and no threads. An engine that is lost is started
    again. Answers of one request alone (n=1) move and survive an engine; others end with an error when theirs is lost.
    """

    def __init__(
        self,
        model: str,
        *,
        name: str = "",
        roles: Many[Role] = ("both", "both"),
        blocks: int = 512,
        kv_bytes: int = 0,
        format: str = "int8",
        cores: Many[int] = (),
        threads: int = 1,
        routing: str | None = None,
        migration: Any = None,
        scaling: str | None = None,
        max_waiting: int = 1024,
        adapters: Mapping[str, str] = {},
        loaded: Loaded | None = None,
        **policies: str,
    ) -> None:
        from nubes.llm.checkpoint import load

        checkpoint = load(model) if loaded is None else loaded.checkpoint
        self.name = name or checkpoint.name
        self.tokens = checkpoint.tokens
        self.context = checkpoint.shape.context
        self.adapters: Many[str] = list(adapters)
        self.fleet = Fleet(routing=routing, migration=migration, scaling=scaling, renews=True)
        self.roles = tuple(roles)
        self.max_waiting = max_waiting
        plan = Plan(
            model=model, format=format, threads=threads, blocks=0 if kv_bytes else blocks, kv_bytes=kv_bytes,
            adapters=dict(adapters),
        )  # fmt: skip
        self._processes = Processes(plan, loaded, tuple(cores), policies, self._frame, self._gone)
        self._asked: dict[int, Asked] = {}
        self._ids = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._calm = 0  # beats without work
        self._closed = False
        self._room = 0, 16  # blocks of an engine, and their size
        self.handed_s: list[tuple[int, float]] = []  # which request landed when
        self.sent_bytes = 0  # to engines for requests that moved
        self.left: list[int] = []  # tokens without KV at the target when the source stopped, of moves by tokens

    async def start(self) -> None:
        """Returns when all engines are ready. Raises `NubesError` if one of them ends before."""
        self._loop = asyncio.get_running_loop()
        await asyncio.gather(*(self._processes.start(self._loop, role) for role in self.roles))
        self._wake()

    def generate(self, request: Request) -> Answers:
        """Deltas of all choices as they come. Raises `UsageError`, `ContextTooLong` or `Overloaded` at once."""
        self._refuse(request)
        request.arrived_s = monotonic()
        if request.sampling.seed is None:  # wherever it goes on, chance does too
            request.sampling = msgspec.structs.replace(request.sampling, seed=secrets.randbits(32))
        self._ids += 1
        id = self._ids
        asked = self._asked[id] = Asked(request)
        count, limit = len(request.prompt), request.sampling.max_tokens or self.context - len(request.prompt)
        self._wake()
        self._tell(e.Asked(Ask(
            id, count, count, limit, request.priority, request.user, request.session, request.adapter, request.work
        )))  # fmt: skip
        return Answers(asked, lambda: self._left(id))

    def _refuse(self, request: Request) -> None:
        check(request, self.tokens, self.context)
        if request.adapter and request.adapter not in self.adapters:
            raise NotFound(f"There is no adapter {request.adapter!r}.", f"There are: {', '.join(self.adapters)}.")
        blocks, size = self._room
        wanted = len(request.prompt) + (request.sampling.max_tokens or 1)
        if blocks and request.n * -(-wanted // size) > blocks:
            raise ContextTooLong(
                f"{request.n} x {wanted} tokens do not fit the KV memory of {blocks * size}.",
                "Ask for fewer, or start the engines with more kv_memory.",
            )
        running = sum(member.report.running for member in self.fleet.members.values())
        if len(self._asked) >= self.max_waiting + running:
            raise Overloaded(f"{len(self._asked)} requests wait or run already.", "Try again a little later.")

    def _left(self, id: int) -> None:
        """Nobody waits for it any more, or it has ended."""
        if self._asked.pop(id, None) is not None:
            self._tell(e.Cancelled(id))

    def stats(self) -> Stats:
        """The sum over the engines, as far as they told. Stalled: the longest time that one of them has said nothing
        though it was asked, or that there is none."""
        total = self._processes.stats(monotonic())
        total.waiting += len(self.fleet.queue)
        return total

    async def refresh(self) -> None:
        """Asks all engines for their counters; `stats` knows them a moment later."""
        self._ask()
        await asyncio.sleep(0.05)

    async def close(self) -> None:
        """Ends all engines; whoever still waits gets an abort."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        if self._timer is not None:
            self._timer.cancel()
        for asked in self._asked.values():
            asked.end(Delta(0, finish="abort", error="The engine was stopped."))
        self._asked.clear()
        await self._processes.close()

    def kill(self, number: int) -> None:
        """Ends one engine at once, as a fault would."""
        os.kill(self._processes[number].pid, signal.SIGKILL)

    # -- from engines ---------------------------------------------------------------------------------------------

    def _frame(self, number: int, frame: list[Any]) -> None:
        kind, *arguments = frame
        getattr(self, f"_on_{kind}")(number, *arguments)

    def _gone(self, number: int) -> None:
        """It was there, and is not any more."""
        log.warning("Engine %d of %s was lost. Another one takes its place.", number, self.name)
        for id, asked in list(self._asked.items()):
            if self.fleet.where.get(id) == number and asked.request.n > 1:
                self._asked.pop(id).end(Delta(0, finish="error", error=LOST))
                self._tell(e.Ended(id, number))
        self._tell(e.Lost(number, {id: asked.known for id, asked in self._asked.items()}))

    def _on_joined(self, number: int, pid: int, report: Any, stats: Any) -> None:
        process, said = self._processes[number], msgspec.convert(report, Report)
        process.pid, process.stats = pid, msgspec.convert(stats, Stats)
        self._room = said.blocks, said.block_size
        process.joined.set_result(None)
        self._tell(e.Joined(number, said, process.role))

    def _on_reported(self, number: int, report: Any, stats: Any) -> None:
        process = self._processes[number]
        process.asked_s, process.stats = 0.0, msgspec.convert(stats, Stats)
        self._tell(e.Reported(number, msgspec.convert(report, Report)))

    def _on_delta(self, number: int, id: int, data: Any) -> None:
        asked = self._asked.get(id)
        if asked is None or self.fleet.where.get(id) != number:
            return  # nobody wants it any more
        delta = msgspec.convert(data, Delta)
        asked.said += delta.tokens
        asked.deltas.put_nowait(delta)
        if delta.finish is not None:
            asked.open -= 1
            if not asked.open:
                self._tell(e.Ended(id, number))

    def _on_prefilled(self, number: int, id: int, blocks: list[int], known: int) -> None:
        if id in self._asked:
            self._asked[id].source = blocks
            held = -(-(known - 1) // self.fleet.members[number].report.block_size)
            self._tell(e.Prefilled(id, number, held, known))

    def _on_filled(self, number: int, id: int, turn: int, full: int, known: int, blocks: list[int]) -> None:
        if id in self._asked:
            self._asked[id].source = blocks
        self._tell(e.Filled(id, turn, full, known))

    def _on_departed(self, number: int, id: int, turn: int, held: int, known: int, blocks: list[int]) -> None:
        if id in self._asked:
            self._asked[id].source = blocks
        handover = self.fleet.handovers.get(id)
        if handover is not None and handover.way == "tokens" and held >= 0:
            self.left.append(known - handover.copied)
            del self.left[:-KEPT]
        self._tell(e.Departed(id, turn, held, known))

    def _on_reserved(self, number: int, id: int, turn: int, ok: bool, blocks: list[int]) -> None:
        if id in self._asked:
            self._asked[id].target = blocks
        self._tell(e.Reserved(id, turn, ok))

    def _on_copied(self, number: int, id: int, turn: int) -> None:
        self._tell(e.Copied(id, turn))

    def _on_landed(self, number: int, id: int, turn: int) -> None:
        self.handed_s.append((id, monotonic()))
        del self.handed_s[:-KEPT]
        self._tell(e.Landed(id, turn))

    def _on_warmed(self, number: int, id: int, turn: int, tokens: int) -> None:
        self._tell(e.Warmed(id, turn, tokens))

    # -- to engines -----------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._calm = 0
        if self._timer is None and not self._closed:
            period_s = min(self.fleet.period_s or BEAT_S, BEAT_S)
            self._timer = self._loop.call_later(period_s, self._beat)

    def _beat(self) -> None:
        self._timer = None
        self._tell(e.Ticked())
        self._ask()
        calm = 0 if self._asked or self.fleet.scaling.period_s else self._calm + 1
        if calm < CALM:
            self._wake()
        self._calm = calm

    def _ask(self) -> None:
        """Engines that have answered the last time are asked again."""
        for process in self._processes.there():
            if not process.asked_s:
                process.asked_s = monotonic()
                process.peer.send(pack("report"))

    def _tell(self, event: e.Event) -> None:
        for command in self.fleet.handle(event, monotonic()):
            self._do(command)

    def _do(self, command: e.Command) -> None:
        if isinstance(command, e.Start):
            task = self._loop.create_task(self._start(command.role))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif isinstance(command, e.Stop):
            self._processes.stop(command.id)
        elif isinstance(command, e.Refuse):
            self._asked.pop(command.id).end(Delta(0, finish="error", error=command.why))
        else:
            self._send(command)

    async def _start(self, role: Role) -> None:
        """One more engine, however often it takes."""
        wait_s = RETRY_S
        while True:
            try:
                return await self._processes.start(self._loop, role)
            except (NubesError, OSError) as error:
                log.error("%s It is tried again in %.1f s.", error, wait_s)
                self._tell(e.Failed())
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_MOST_S)

    def _send(self, command: e.Command) -> None:
        process, asked = self._processes.get(receiver(command)), self._asked.get(command.id)
        if process is None or not (frame := frame_of(command, asked, self._processes.kv_file)):
            return
        if isinstance(command, e.Part) or (asked is not None and asked.said):
            self.sent_bytes += len(frame)
        process.peer.send(frame)
