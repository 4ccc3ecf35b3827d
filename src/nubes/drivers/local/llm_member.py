"""One engine of a fleet, in a process of its own: does what the router says over a socket, and tells what came of it.

It is a fork of the process that holds the weights. Its KV lies in a file in shared memory, so that another engine reads
the blocks of a sequence that moves there.
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from nubes.drivers.local.llm_engine import MemberEngine
from nubes.drivers.local.peer import Peer
from nubes.drivers.local.wire import pack
from nubes.llm.cluster.member import Role, report
from nubes.llm.engine.choice import Job
from nubes.llm.runtime import memory
from nubes.llm.spec import Delta, Request, Sampling

if TYPE_CHECKING:
    from nubes.llm.live import Tokens
    from nubes.llm.lora.store import Store
    from nubes.llm.runtime.rows import Runtime


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What is an engine's own. `core`: the one it is pinned to; -1: all."""

    number: int
    kv_file: str
    role: Role = "both"
    core: int = -1
    policies: dict[str, str] = {}


class Member:
    """The process: frames in, the engine's thread, frames out."""

    def __init__(self, config: Config, runtime: Runtime, tokens: Tokens, store: Store, sock: socket.socket) -> None:
        self.loop = asyncio.get_running_loop()
        memory.share(runtime.kv, config.kv_file)
        policies: dict[str, Any] = config.policies
        self.engine = MemberEngine(f"engine-{config.number}", runtime, tokens, store=store, **policies)
        self.engine.role = config.role
        self.others: dict[str, Any] = {}  # KV of other engines, by file
        self.copying: dict[int, asyncio.Task[None]] = {}
        self.ahead: dict[int, Job] = {}
        self.done = self.loop.create_future()
        self.peer = Peer(self.loop, sock, self.frame, lambda: self.done.set_result(None))
        self.engine.serve(self.loop, self.tell)
        self.tell("joined", os.getpid(), report(self.engine.scheduler.state), self.engine.stats())

    def tell(self, *frame: Any) -> None:
        self.peer.send(pack(*frame))

    def frame(self, frame: list[Any]) -> None:
        kind, *arguments = frame
        getattr(self, f"on_{kind}")(*arguments)

    def on_submit(self, id: int, request: Any, said: list[int]) -> None:
        self.engine.submit(id, msgspec.convert(request, Request), said)

    def on_cancel(self, id: int) -> None:
        self.engine.cancel(id)

    def on_report(self) -> None:
        self.engine.between(self.engine.report)

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

    def on_copy(self, id: int, turn: int, source: str, blocks: list[int], targets: list[int]) -> None:
        task = self.loop.create_task(asyncio.to_thread(self.copy, source, blocks, targets))
        self.copying[id] = task

        def copied(_: object) -> None:
            del self.copying[id]
            self.tell("copied", id, turn)

        task.add_done_callback(copied)

    def copy(self, source: str, blocks: list[int], targets: list[int]) -> None:
        kv = self.engine.runtime.kv
        if source not in self.others:
            self.others[source] = memory.mapped(source, kv.shape, kv.dtype)
        other = self.others[source]
        for block, target in zip(blocks, targets, strict=True):
            kv[target] = other[block]

    def on_land(self, id: int, turn: int, request: Any, said: list[int]) -> None:
        wanted = msgspec.convert(request, Request)
        self.engine.between(lambda: self.engine.land(id, turn, wanted, said))

    def on_warm(self, id: int, turn: int, tokens: list[int], request: Any) -> None:
        """Computes KV of these tokens, which stays for the one who comes with them."""
        wanted = msgspec.convert(request, Request)
        short = Request(
            id=f"{wanted.id} ahead", prompt=tokens, sampling=Sampling(max_tokens=1, temperature=0.0, ignore_eos=True),
            adapter=wanted.adapter, cache_salt=wanted.cache_salt, arrived_s=wanted.arrived_s,
        )  # fmt: skip

        def told(delta: Delta) -> None:
            if self.ahead.pop(id, None) is job:
                self.tell("warmed", id, turn, len(tokens) if delta.finish in ("length", "stop") else -1)

        job = self.ahead[id] = self.engine.job(id, short, [], told)
        self.engine._send("arrive", job)


async def _run(config: Config, runtime: Runtime, tokens: Tokens, store: Store, sock: socket.socket) -> None:
    await Member(config, runtime, tokens, store, sock).done


def live(config: Config, runtime: Runtime, tokens: Tokens, store: Store, sock: socket.socket) -> None:
    """In a fork of the process that holds the weights: is an engine until the router is gone."""
    Path("/proc/self/comm").write_text(f"nubes-engine-{config.number}"[:15])
    if config.core >= 0:
        os.sched_setaffinity(0, {config.core})
    asyncio.run(_run(config, runtime, tokens, store, sock))
