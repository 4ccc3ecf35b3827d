"""The router of a fleet of engines, each in a process of its own. To those who ask it is one engine."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Sequence as Many
from time import monotonic
from typing import Any

import msgspec

from nubes.drivers.local.llm_member import Config
from nubes.drivers.local.peer import Peer
from nubes.drivers.local.wire import pack
from nubes.kernel.errors import NubesError, Overloaded, UsageError
from nubes.llm.cluster import events as e
from nubes.llm.cluster.fleet import Fleet
from nubes.llm.cluster.member import Report, Role
from nubes.llm.cluster.seams import Ask
from nubes.llm.engine.asking import MAX_WIDTH
from nubes.llm.errors import ContextTooLong
from nubes.llm.live import Deltas, Stats
from nubes.llm.spec import Delta, Request

MOST = 16  # engines, and files for their KV
LOST = "The engine was lost in the middle of several answers. Send the request again."


class _Asked:
    """A request, and what it has by now."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.deltas: asyncio.Queue[Delta] = asyncio.Queue()
        self.said: list[int] = []
        self.state = ""  # of chance, when it stopped
        self.open = request.n  # answers that have not ended
        self.left = request.n  # and those whose end was not taken yet
        self.source: list[int] = []  # its blocks where it is, and where it goes
        self.target: list[int] = []


class _Deltas:
    """What a request gets, as it comes. Left early, by `aclose` or by nobody holding it, the request is cancelled."""

    def __init__(self, fleet: EngineFleet, id: int, asked: _Asked) -> None:
        self._fleet = fleet
        self._id = id
        self._asked = asked

    def __aiter__(self) -> _Deltas:
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
        self._fleet._left(self._id)

    def __del__(self) -> None:
        if self._asked.left:
            self._fleet._left(self._id)


class _Process:
    def __init__(self, process: subprocess.Popen[bytes], peer: Peer, role: Role) -> None:
        self.process = process
        self.peer = peer
        self.role = role


class EngineFleet:
    """Implements `nubes.llm.live.Engine` over `len(roles)` processes; `start` it first, in the loop that uses it.

    `cores`: each engine is pinned to the one at its place. `policies`: of the engines. Answers of one request alone
    (n=1) move and survive an engine; others end with an error when theirs is lost.
    """

    def __init__(
        self,
        model: str,
        *,
        roles: Many[Role] = ("both", "both"),
        blocks: int = 512,
        format: str = "int8",
        cores: Many[int] = (),
        threads: int = 1,
        routing: str | None = None,
        migration: Any = None,
        scaling: str | None = None,
        max_waiting: int = 1024,
        **policies: str,
    ) -> None:
        from nubes.llm.checkpoint import load

        if policies.get("restoration"):
            raise UsageError("KV goes from engine to engine without what it could be restored from.", "Leave it out.")
        checkpoint = load(model)
        self.name = checkpoint.name
        self.tokens = checkpoint.tokens
        self.context = checkpoint.shape.context
        self.adapters: Many[str] = ()
        self.fleet = Fleet(routing=routing, migration=migration, scaling=scaling)
        self.roles = tuple(roles)
        self.max_waiting = max_waiting * len(roles)
        self._config = Config(
            number=0, model=model, kv_files={}, blocks=blocks, format=format, threads=threads, policies=policies
        )
        self._cores = tuple(cores)
        self._memory: list[int] = []  # files in memory with the KV of each engine
        self._processes: dict[int, _Process] = {}
        self._asked: dict[int, _Asked] = {}
        self._ids = 0
        self._numbers = 0
        self._joined: dict[int, asyncio.Future[None]] = {}
        self._stats: dict[int, Stats] = {}
        self.handed_s: list[tuple[int, float]] = []  # which request landed when
        self.sent_bytes = 0  # to engines for requests that moved
        self.left: list[int] = []  # tokens without KV at the target when the source stopped, of moves by tokens

    async def start(self) -> None:
        """Returns when all engines are ready. Raises `NubesError` if one of them ends before."""
        self._loop = asyncio.get_running_loop()
        self._memory = [os.memfd_create(f"nubes-kv-{number}") for number in range(MOST)]
        files = {number: f"/proc/{os.getpid()}/fd/{fd}" for number, fd in enumerate(self._memory)}
        self._config = msgspec.structs.replace(self._config, kv_files=files)
        await asyncio.gather(*(self._spawn(role) for role in self.roles))
        if self.fleet.period_s:
            self._loop.call_later(self.fleet.period_s, self._tick)

    async def _spawn(self, role: Role) -> None:
        number = self._numbers
        self._numbers += 1
        core = self._cores[number] if number < len(self._cores) else -1
        config = msgspec.structs.replace(self._config, number=number, role=role, core=core)
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "nubes.drivers.local.llm_member", msgspec.json.encode(config).decode()]
            process = subprocess.Popen([*command, str(theirs.fileno())], pass_fds=[theirs.fileno()])
        self._joined[number] = self._loop.create_future()
        peer = Peer(self._loop, ours, lambda frame: self._frame(number, frame), lambda: self._gone(number))
        self._processes[number] = _Process(process, peer, role)
        await self._joined[number]

    def generate(self, request: Request) -> Deltas:
        """Deltas of all choices as they come. Raises `UsageError`, `ContextTooLong` or `Overloaded` at once."""
        self._refuse(request)
        request.arrived_s = monotonic()
        self._ids += 1
        id = self._ids
        asked = self._asked[id] = _Asked(request)
        count, limit = len(request.prompt), request.sampling.max_tokens or self.context - len(request.prompt)
        ask = Ask(
            id, count, count, limit, request.priority, request.user, request.session, request.adapter, request.work
        )
        self._tell(e.Asked(ask))
        return _Deltas(self, id, asked)

    def _refuse(self, request: Request) -> None:
        if not request.prompt or not all(0 <= token < self.tokens.vocab for token in request.prompt):
            raise UsageError("The prompt is empty or holds a token that the model does not have.", "Use its tokenizer.")
        if not 1 <= request.n <= MAX_WIDTH:
            raise UsageError(f"n={request.n} is out of range.", f"Ask for 1 to {MAX_WIDTH} answers.")
        if request.adapter:
            raise UsageError("Several engines together serve no adapters.", "Serve the model with one engine.")
        wanted = len(request.prompt) + (1 if request.sampling.max_tokens is None else request.sampling.max_tokens)
        if wanted > self.context:
            raise ContextTooLong(
                f"{wanted} tokens exceed the context of {self.context}.", "Shorten the prompt, or ask for fewer tokens."
            )
        if len(self._asked) >= self.max_waiting:
            raise Overloaded(f"{len(self._asked)} requests wait or run already.", "Try again a little later.")
        if request.sampling.grammar is not None:
            from nubes.llm.engine.structured import check

            check(request.sampling.grammar, self.tokens)

    def _left(self, id: int) -> None:
        """Nobody waits for it any more, or it has ended."""
        if self._asked.pop(id, None) is not None:
            self._tell(e.Cancelled(id))

    def stats(self) -> Stats:
        """The sum over the engines, as far as they told."""
        total = Stats()
        for said in self._stats.values():
            for name in Stats.__struct_fields__:
                setattr(total, name, getattr(total, name) + getattr(said, name))
        return total

    async def refresh(self) -> None:
        """Asks all engines for their counters; `stats` knows them a moment later."""
        for process in self._processes.values():
            process.peer.send(pack("stats", 0))
        await asyncio.sleep(0.05)

    async def close(self) -> None:
        """Ends all engines; whoever still waits gets an abort."""
        processes, self._processes = self._processes, {}
        for asked in self._asked.values():
            for index in range(asked.open):
                asked.deltas.put_nowait(Delta(index, finish="abort", error="The engine was stopped."))
        for process in processes.values():
            process.peer.close()
        for process in processes.values():
            await asyncio.to_thread(process.process.wait)
        for fd in self._memory:
            os.close(fd)
        self._memory = []

    def kill(self, number: int) -> None:
        """Ends one engine at once, as a fault would."""
        self._processes[number].process.kill()

    # -- from engines ---------------------------------------------------------------------------------------------

    def _frame(self, number: int, frame: list[Any]) -> None:
        kind, *arguments = frame
        getattr(self, f"_on_{kind}")(number, *arguments)

    def _gone(self, number: int) -> None:
        process = self._processes.pop(number, None)
        if process is None:
            return  # it was stopped
        process.process.wait()
        joined = self._joined[number]
        if not joined.done():
            joined.set_exception(NubesError(f"Engine {number} of {self.name} ended while it started."))
            return
        for id, asked in list(self._asked.items()):
            if self.fleet.where.get(id) == number and asked.request.n > 1:
                self._end(id, Delta(0, finish="error", error=LOST))
                self._tell(e.Ended(id, number))
        known = {id: len(asked.request.prompt) + len(asked.said) for id, asked in self._asked.items()}
        self._tell(e.Lost(number, known))

    def _on_joined(self, number: int, report: Any) -> None:
        self._tell(e.Joined(number, msgspec.convert(report, Report), self._processes[number].role))
        self._joined[number].set_result(None)

    def _on_reported(self, number: int, report: Any) -> None:
        self._tell(e.Reported(number, msgspec.convert(report, Report)))

    def _on_stats(self, number: int, ask: int, stats: Any) -> None:
        self._stats[number] = msgspec.convert(stats, Stats)

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

    def _on_prefilled(self, number: int, id: int, blocks: list[int], known: int, state: str) -> None:
        if id in self._asked:
            self._asked[id].source, self._asked[id].state = blocks, state
            held = -(-(known - 1) // self.fleet.members[number].report.block_size)
            self._tell(e.Prefilled(id, number, held, known))

    def _on_filled(self, number: int, id: int, turn: int, full: int, known: int, blocks: list[int]) -> None:
        if id in self._asked:
            self._asked[id].source = blocks
        self._tell(e.Filled(id, turn, full, known))

    def _on_departed(
        self, number: int, id: int, turn: int, held: int, known: int, blocks: list[int], state: str
    ) -> None:
        if id in self._asked:
            self._asked[id].source, self._asked[id].state = blocks, state
        handover = self.fleet.handovers.get(id)
        if handover is not None and handover.way == "tokens" and held >= 0:
            self.left.append(known - handover.copied)
        self._tell(e.Departed(id, turn, held, known))

    def _on_reserved(self, number: int, id: int, turn: int, ok: bool, blocks: list[int]) -> None:
        if id in self._asked:
            self._asked[id].target = blocks
        self._tell(e.Reserved(id, turn, ok))

    def _on_copied(self, number: int, id: int, turn: int) -> None:
        self._tell(e.Copied(id, turn))

    def _on_landed(self, number: int, id: int, turn: int) -> None:
        self.handed_s.append((id, monotonic()))
        self._tell(e.Landed(id, turn))

    def _on_warmed(self, number: int, id: int, turn: int, tokens: int) -> None:
        self._tell(e.Warmed(id, turn, tokens))

    # -- to engines -----------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        if not self._processes:
            return
        self._tell(e.Ticked())
        for process in self._processes.values():
            process.peer.send(pack("report"))
        self._loop.call_later(self.fleet.period_s, self._tick)

    def _tell(self, event: e.Event) -> None:
        for command in self.fleet.handle(event, monotonic()):
            self._do(command)

    def _end(self, id: int, delta: Delta) -> None:
        asked = self._asked.pop(id)
        for index in range(asked.open):
            asked.deltas.put_nowait(msgspec.structs.replace(delta, index=index))

    def _do(self, command: e.Command) -> None:
        if isinstance(command, e.Start):
            self._starting = self._loop.create_task(self._spawn("both"))
        elif isinstance(command, e.Stop):
            self._processes.pop(command.id).peer.close()
        elif isinstance(command, e.Refuse):
            self._end(command.id, Delta(0, finish="error", error=command.why))
        else:
            self._send(command)

    def _send(self, command: Any) -> None:
        number = command.target if isinstance(command, e.Copy | e.Land | e.Warm) else command.number
        process, asked = self._processes.get(number), self._asked.get(command.id)
        if process is None:
            return
        match command:
            case e.Cancel(id):
                frame = pack("cancel", id)
            case e.Look(id, turn) | e.Depart(id, turn):
                frame = pack(type(command).__name__.lower(), id, turn)
            case e.Stay(id) | e.Release(id) | e.Unreserve(id):
                frame = pack(type(command).__name__.lower(), id)
            case e.Reserve(id, turn, _, blocks):
                frame = pack("reserve", id, turn, blocks)
            case _ if asked is None:
                return  # cancelled meanwhile, and the engine was told
            case e.Dispatch(id):
                frame = pack("submit", id, asked.request, asked.said, asked.state)
            case e.Copy(id, turn, source, _, first, end):
                frame = pack("copy", id, turn, source, asked.source[first:end], asked.target[first:end])
            case e.Land(id, turn):
                frame = pack("land", id, turn, asked.request, asked.said, asked.state)
            case e.Warm(id, turn):
                frame = pack("warm", id, turn, [*asked.request.prompt, *asked.said], asked.request)
            case _:
                raise TypeError(f"{command!r} is no command to an engine")
        if isinstance(command, e.Part) or (asked is not None and asked.said):
            self.sent_bytes += len(frame)
        process.peer.send(frame)
