"""An agent: starts, feeds and ends instances on its machine as the control plane says, for as long as it hears of it.

It lives one life after the other. What is here is what a life is given: a folder, connections, memory and processes.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from nubes.drivers.local.peer import Peer
from nubes.drivers.local.shared_folder import SharedFolder
from nubes.drivers.remote import listener, messages
from nubes.drivers.remote.carrying import Carrier, Inline
from nubes.drivers.remote.life import Life
from nubes.drivers.remote.site import LocalSite
from nubes.drivers.remote.tunnel import Tunnel
from nubes.kernel.errors import UsageError
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
        self._leaving = False  # begins no other life

    async def run(self) -> None:
        """Raises `UsageError` if the control plane does not let it in, `AlreadyRunning` if the folder is in use."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        held = lock(self.folder)
        try:
            while not self._leaving:
                self._leaving |= await self._live()
                if not self._leaving:
                    self.tell("the control plane is gone, or is another one; instances were ended")
                    await asyncio.sleep(AGAIN_S)
        finally:
            os.close(held)

    def leave(self) -> None:
        """The machine is to go: once nothing is left to do on it."""
        self._leaving = True
        if self._life is not None:
            self._life.leave()

    def stop(self) -> None:
        """At once."""
        self._leaving = True
        if self._life is not None:
            self._life.end(True)

    async def _live(self) -> bool:
        """One life; whether the agent is to end with it. Raises `UsageError` if it is never let in."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[bool] = loop.create_future()
        incarnation = messages.incarnation()
        shared = SharedFolder(f"agent-{incarnation:x}", self.folder)
        site = partial(LocalSite, loop, self.folder, shared.path)
        life = self._life = Life(loop, incarnation, self.carrier, site, lambda whole: _set(ended, whole))
        tunnel = Tunnel(loop, self.folder / "socket", self._open_way, shared.path, self.folder / "objects")
        dialing = loop.create_task(self._dial(life, ended))
        try:
            return await ended
        finally:
            dialing.cancel()
            life.end(False)
            tunnel.close()
            shared.close()

    async def _dial(self, life: Life, ended: asyncio.Future[bool]) -> None:
        """Keeps a connection. The life ends when it is refused."""
        loop = asyncio.get_running_loop()
        raw = messages.encode(msgspec.structs.replace(self.about, incarnation=life.incarnation))
        while not life.ended:
            if not life.line.connected:
                since_s = loop.time()
                try:
                    sock, _ = await listener.connect(loop, self.address, self.token, messages.AGENT, raw)
                except UsageError as error:
                    if not life.joined and not ended.done():
                        ended.set_exception(error)
                    life.end(False)
                except (OSError, TimeoutError, ValueError):
                    pass  # it is tried again
                else:
                    life.connected(partial(Peer, loop, sock), since_s)
            await asyncio.sleep(AGAIN_S)

    async def _open_way(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        sock, _ = await listener.connect(loop, self.address, self.token, messages.CLIENT, b"")
        return sock


def _set(ended: asyncio.Future[bool], whole: bool) -> None:
    if not ended.done():
        ended.set_result(whole)
