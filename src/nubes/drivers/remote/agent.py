"""An agent: starts, feeds and ends instances on its machine as the control plane says, for as long as it hears of it.

It lives one life after the other. A life has a number of its own, a link and processes; it ends when the control plane
has been silent for too long, or is another one than before, and with it end all its instances. Then the next begins.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from nubes.drivers.local import payload, wire
from nubes.drivers.local.environments import Environments
from nubes.drivers.local.limits import Limits
from nubes.drivers.local.objects import is_url
from nubes.drivers.local.peer import Peer
from nubes.drivers.local.processes import Processes
from nubes.drivers.local.shared_folder import SharedFolder
from nubes.drivers.remote import code, listener, messages
from nubes.drivers.remote.carrying import Carrier, Inline, InOrder
from nubes.drivers.remote.tunnel import Tunnel
from nubes.functions import events as e
from nubes.functions.spec import FunctionSpec
from nubes.kernel.errors import NubesError, Unavailable, UsageError
from nubes.kernel.link import Link, LinkBroken
from nubes.kernel.log import lock

AGAIN_S = 0.5  # how soon a connection is tried again


class Agent:
    """`run` serves until it is told to go, or `leave` was called and nothing is left to do."""

    def __init__(
        self, folder: Path, address: tuple[str, int], token: str, about: messages.About, carrier: Carrier | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.address = address
        self.token = token
        self.about = about
        self.carrier = carrier or Inline()
        self.tell = tell
        self._life: Life | None = None
        self._over = False
        self._leaving = False

    async def run(self) -> None:
        """Raises `UsageError` if the control plane does not let it in, `AlreadyRunning` if the folder is in use."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        held = lock(self.folder)
        try:
            await self._live()
        finally:
            os.close(held)

    async def _live(self) -> None:
        while not self._over:
            self._life = Life(self)
            try:
                self._over = await self._life.run() or self._leaving
            finally:
                self._life.close()
            if not self._over:
                self.tell("the control plane is gone, or is another one; instances were ended")
                await asyncio.sleep(AGAIN_S)

    def leave(self) -> None:
        """The machine is to go: once nothing is left to do on it."""
        self._leaving = True
        if self._life is None or not self._life.joined:
            self.stop()
        else:
            self._life.leave()

    def stop(self) -> None:
        """At once."""
        self._over = True
        if self._life is not None:
            self._life.end(True)


class Life:
    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.loop = asyncio.get_running_loop()
        incarnation = int.from_bytes(os.urandom(7), "big") + 1
        self.about = msgspec.structs.replace(agent.about, incarnation=incarnation)
        self.link = Link(incarnation)
        self.peer: Peer | None = None
        self.joined = False
        self.heard_s = self.loop.time()
        self.specs: dict[str, FunctionSpec] = {}
        self._around: dict[str, messages.Surroundings] = {}
        self._held: dict[str, list[messages.Do]] = {}  # by the function whose files they wait for
        self._prime = False
        self._arguments: dict[int, str] = {}  # segments with those of calls
        self._in_order = InOrder(self.loop)
        self._ended: asyncio.Future[bool] = self.loop.create_future()
        folder = agent.folder
        for name in ("objects", "output", "environments", "code"):
            (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        self._shared = SharedFolder(f"agent-{incarnation:x}", folder)
        self._segments = payload.Segments(str(self._shared.path), keep=False)
        self.objects = folder / "objects"
        self.limits = Limits(groups_of(folder))
        self.environments = Environments(folder / "environments")
        self.processes = Processes(
            self.loop, folder, self._shared.path, self.specs, self._report, self._frame, self._python, self._settings,
            self.limits, lambda: self._prime, str(self.objects),
        )  # fmt: skip
        self.tunnel = Tunnel(self.loop, folder / "socket", agent, self._shared.path, self.objects)

    # -- life ----------------------------------------------------------------------------------------------------

    async def run(self) -> bool:
        """Until it ends; whether the agent is to end, too."""
        connecting = self.loop.create_task(self._connect())
        beating = self.loop.create_task(self._beat())
        try:
            return await self._ended
        finally:
            for task in (connecting, beating):
                task.cancel()

    def end(self, whole: bool) -> None:
        if not self._ended.done():
            self._ended.set_result(whole)

    def leave(self) -> None:
        self._send(messages.Leaves())

    def close(self) -> None:
        self.tunnel.close()
        self.processes.close()
        self.environments.close()
        if self.peer is not None:
            self.peer.close()
        self._shared.close()

    async def _connect(self) -> None:
        """Keeps a connection; gives up what it has when it is refused, or for too long."""
        agent = self.agent
        while not self._ended.done():
            if self.peer is None:
                try:
                    raw = messages.encode(self.about)
                    sock, _ = await listener.connect(self.loop, agent.address, agent.token, messages.AGENT, raw)
                except (OSError, TimeoutError, ValueError):
                    await asyncio.sleep(AGAIN_S)
                    continue
                except UsageError as error:
                    if not self.joined and not self._ended.done():
                        self._ended.set_exception(error)
                    self.end(False)
                    return
                self.joined = True
                self.peer = peer = Peer(self.loop, sock, self._received, self._cut)
                self._write(self.link.connected(), peer)
            await asyncio.sleep(AGAIN_S)

    def _cut(self) -> None:
        self.peer = None
        self.link.disconnected()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(messages.BEAT_S)
            self._write(self.link.beat(), self.peer)
            if self.joined and self.loop.time() - self.heard_s > messages.LEASE_S:
                self.end(False)

    def _received(self, frame: list[Any]) -> None:
        try:
            said, answer, anew = self.link.receive(frame[1])
        except LinkBroken:
            if self.peer is not None:
                self.peer.close()
            return
        self.heard_s = self.loop.time()
        if anew:
            self.end(False)
            return
        self._write(answer, self.peer)
        for message in said:
            self._ordered(messages.order(message))

    def _write(self, frames: list[bytes], peer: Peer | None) -> None:
        if peer is not None and frames:
            peer.send(b"".join(wire.pack(messages.LINK, frame) for frame in frames))

    def _send(self, news: Any) -> None:
        self._write(self.link.send(messages.encode(news)), self.peer)

    # -- orders --------------------------------------------------------------------------------------------------

    def _ordered(self, order: Any) -> None:
        if isinstance(order, messages.Run):
            self._run(order)
        elif isinstance(order, messages.Files):
            self._unpack(order)
        elif isinstance(order, messages.Bye):
            self.end(True)
        elif isinstance(order.command, e.StopInstance):
            self._unhold(order.command.instance)
            self.processes.stop(order.command)
        elif isinstance(order.command, e.Interrupt):
            self.processes.interrupt(order.command)
        elif isinstance(order.command, e.PruneNode):
            self.processes.prune(order.command)
        elif order.around is not None:
            self._prepare(order, order.around)

    def _run(self, order: messages.Run) -> None:
        """Gives calls to an instance, with their large arguments in this machine's memory."""
        carrier, segments = self.agent.carrier, self._segments
        work = None
        if any(map(carrier.waits, order.inputs)):
            work = lambda: [carrier.unpack(data, segments) for data in order.inputs]  # noqa: E731
        self._in_order.do(order.command.instance, work, lambda inputs: self._ran(order, inputs))

    def _ran(self, order: messages.Run, inputs: list[bytes] | Exception | None) -> None:
        command = order.command
        if isinstance(inputs, Exception):
            reason = f"its arguments could not be had: {inputs}"
            self.processes.stop(e.StopInstance(command.instance, reason, kill=True))
            return
        for call, data in zip(command.calls, inputs or (), strict=False):
            if payload.segment_of(data):
                self._arguments[call] = payload.segment_of(data)
        self.processes.dispatch(command, order.keep, order.inputs if inputs is None else inputs)

    def _prepare(self, order: messages.Do, around: messages.Surroundings) -> None:
        """Starts what is to be started, once the function's files are here."""
        name = around.spec.name
        held = self._held.get(name)
        if held is not None:
            held.append(order)
            return
        known = self.specs.get(name)
        if known is not None and known.code.digest == around.spec.code.digest:
            around.spec = msgspec.structs.replace(around.spec, code=known.code)
        elif not code.is_here(around.spec.code):
            self._held[name] = [order]
            self._send(messages.Wants(name))
            return
        self._start(order, around)

    def _unpack(self, files: messages.Files) -> None:
        for order in self._held.pop(files.function, []):
            around = order.around
            assert around is not None
            try:
                if files.error:
                    raise UsageError(files.error)
                place = self.agent.folder / "code"
                around.spec = msgspec.structs.replace(
                    around.spec, code=code.unpack(around.spec.code, files.files, place)
                )
            except (NubesError, OSError) as error:
                self._failed(order.command, f"its files could not be had: {error}")
                continue
            self._start(order, around)

    def _start(self, order: messages.Do, around: messages.Surroundings) -> None:
        command = order.command
        self.specs[around.spec.name] = around.spec
        self._around[around.spec.name] = around
        missing = [name for name in around.volumes.values() if not os.path.isdir(name)]
        if missing:
            self._failed(command, f"its volume {missing[0]} is not on this machine; share the folder between machines")
        elif isinstance(command, e.StartInstance):
            self.processes.start(command)
        elif isinstance(command, e.GrowNode):
            self._prime = order.prime
            self.processes.grow(command)

    def _failed(self, command: Any, reason: str) -> None:
        if isinstance(command, e.StartInstance):
            self._report(e.InstanceLost(command.instance, reason))
        elif isinstance(command, e.GrowNode):
            self._report(e.NodeLost(command.node, reason))

    def _unhold(self, instance: int) -> None:
        """What is stopped need not be started any more."""
        for orders in self._held.values():
            for order in orders:
                if isinstance(order.command, e.StartInstance) and order.command.instance == instance:
                    orders.remove(order)
                    self._report(e.InstanceLost(instance, "it was stopped before it was started"))
                    return

    # -- news ----------------------------------------------------------------------------------------------------

    def _report(self, event: Any) -> None:
        self._send(messages.Happened(event))

    def _frame(self, instance: int, frame: list[Any]) -> None:
        keep = False
        place = wire.RESULTS.get(frame[0])
        if place is not None:
            segment = payload.segment_of(frame[place])
            keep = payload.is_object(segment) and not is_url(segment)
            frame[place] = self.agent.carrier.pack(frame[place], "")
            if keep:
                payload.discard(segment)
        if frame[0] == wire.DONE and frame[1] in self._arguments:
            payload.discard(self._arguments.pop(frame[1]))
        process = self.processes.instances.get(instance) if frame[0] == wire.READY else None
        self._send(messages.Said(instance, frame, keep, process.pid if process is not None else 0))

    # -- what processes need -------------------------------------------------------------------------------------

    def _python(self, environment: str) -> str:
        if not environment:
            return sys.executable
        for around in self._around.values():
            if around.spec.environment == environment and os.path.exists(around.python):
                return around.python
        path = self.environments.python(environment)
        if path is None:
            raise Unavailable(
                f"Environment {environment} is not on this machine.", "Share the data folder between machines."
            )
        return str(path)

    def _settings(self, spec: FunctionSpec) -> tuple[dict[str, str], dict[str, str]]:
        around = self._around[spec.name]
        return {**around.env, "NUBES_SOCKET": str(self.agent.folder / "socket")}, around.volumes


def groups_of(folder: Path) -> str:
    """What an agent's control groups are called: as before a crash, so that what was left of it is found and ended."""
    return f"nubes-agent-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]}"
