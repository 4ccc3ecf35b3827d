"""An agent: starts, feeds and ends instances on its machine as the control plane says, for as long as it hears of it.

It lives one life after the other. A life has a number of its own, a link and processes; it ends when the control plane
has been silent for too long, or is another one than before, and with it end all its instances. Then the next begins.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from nubes.drivers.local.peer import Peer
from nubes.drivers.local.shared_folder import SharedFolder
from nubes.drivers.remote import listener, messages
from nubes.drivers.remote.carrying import Carrier, Inline
from nubes.drivers.remote.tunnel import Tunnel
from nubes.drivers.remote.work import Work
from nubes.kernel.errors import UsageError
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
    """One incarnation: its link, the connection under it while there is one, and its work."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.loop = asyncio.get_running_loop()
        incarnation = int.from_bytes(os.urandom(7), "big") + 1
        self.about = msgspec.structs.replace(agent.about, incarnation=incarnation)
        self.link = Link(incarnation)
        self.peer: Peer | None = None
        self.joined = False
        self.heard_s = self.loop.time()
        self._ended: asyncio.Future[bool] = self.loop.create_future()
        self.shared = SharedFolder(f"agent-{incarnation:x}", agent.folder)
        self.work = Work(self.loop, agent.folder, self.shared.path, agent.carrier, self._send, lambda: self.end(True))
        self.tunnel = Tunnel(self.loop, agent.folder / "socket", self._open_way, self.shared.path, self.work.objects)

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
        self.work.close()
        if self.peer is not None:
            self.peer.close()
        self.shared.close()

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

    async def _open_way(self) -> socket.socket:
        agent = self.agent
        sock, _ = await listener.connect(self.loop, agent.address, agent.token, messages.CLIENT, b"")
        return sock

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
            self.work.ordered(messages.order(message))

    def _write(self, frames: list[bytes], peer: Peer | None) -> None:
        if peer is not None and frames:
            peer.send(messages.linked(frames))

    def _send(self, news: Any) -> None:
        self._write(self.link.send(messages.encode(news)), self.peer)
