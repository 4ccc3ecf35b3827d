"""Networks that can be broken: a namespace for each machine where that is allowed, and a proxy in between.

Whoever is root has each agent in a network namespace of its own, on a pair of virtual interfaces: set down, they lose
packets without a word, as a cut cable does. The proxy can reset, half-close and stall connections, for anybody.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable

_LINGER_NONE = struct.pack("ii", 1, 0)  # closing sends a reset


def namespaces_work() -> bool:
    """Whether this user may make network namespaces here."""
    if os.geteuid() or not shutil.which("ip") or not shutil.which("nsenter"):
        return False
    name = f"nubes-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return made


class Network:
    """The way from machine `number` (from 1) to the control plane on `port`; `address` is what its agent is given."""

    def __init__(self, number: int, port: int, isolated: bool) -> None:
        self.isolated = isolated
        self.namespace = f"nubes-{os.getpid()}-{number}"
        self._link = f"nb{os.getpid() % 1_000_000}x{number}"
        host = "127.0.0.1"
        if isolated:
            subnet = (os.getpid() * 16 + number) % (1 << 13)
            place = f"10.213.{subnet >> 5}."
            host, self._inside = f"{place}{(subnet & 31) * 8 + 1}", f"{place}{(subnet & 31) * 8 + 2}"
            self._make(host)
        self._proxy = Proxy(host, port)
        self.address = f"{host}:{self._proxy.port}"

    def inside(self, argv: list[str]) -> list[str]:
        """The command that runs `argv` on this machine."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *argv] if self.isolated else argv

    def partition(self) -> None:
        if self.isolated:
            _ip("link", "set", self._link, "down")
        else:
            self._proxy.stall()

    def stall(self) -> None:
        self._proxy.stall()

    def heal(self) -> None:
        if self.isolated:
            _ip("link", "set", self._link, "up")
        self._proxy.flow()

    def reset(self) -> None:
        self._proxy.reset()

    def half_close(self, towards_plane: bool) -> None:
        self._proxy.half_close(towards_plane)

    def close(self) -> None:
        self._proxy.close()
        if self.isolated:
            subprocess.run(["ip", "link", "del", self._link], capture_output=True, check=False)
            subprocess.run(["ip", "netns", "del", self.namespace], capture_output=True, check=False)

    def _make(self, host: str) -> None:
        peer = f"{self._link}p"
        _ip("netns", "add", self.namespace)
        _ip("link", "add", self._link, "type", "veth", "peer", "name", peer)
        _ip("link", "set", peer, "netns", self.namespace)
        _ip("addr", "add", f"{host}/29", "dev", self._link)
        _ip("link", "set", self._link, "up")
        for words in (f"addr add {self._inside}/29 dev {peer}", f"link set {peer} up", "link set lo up"):
            _ip("-n", self.namespace, *words.split())


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Proxy:
    """Carries connections to `port` of this machine, in a thread of its own. `port` is where it listens itself."""

    def __init__(self, host: str, port: int) -> None:
        self._target = port
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        made = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._carry, host, 0), self._loop).result()
        self.port: int = made.sockets[0].getsockname()[1]
        self._server = made

    def stall(self) -> None:
        self._do(self._flowing.clear)

    def flow(self) -> None:
        self._do(self._flowing.set)

    def reset(self) -> None:
        def all_of_them() -> None:
            for pair in list(self._pairs):
                for writer in pair:
                    _reset(writer)

        self._do(all_of_them)

    def half_close(self, towards_plane: bool) -> None:
        def all_of_them() -> None:
            for down, up in list(self._pairs):
                writer = up if towards_plane else down
                if writer.can_write_eof() and not writer.is_closing():
                    writer.write_eof()

        self._do(all_of_them)

    def close(self) -> None:
        self.reset()
        self._do(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.call_later, 0.2, self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, what: Callable[[], None]) -> None:
        async def inside() -> None:
            what()

        asyncio.run_coroutine_threadsafe(inside(), self._loop).result()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            _reset(writer)
            return
        pair = (writer, back)
        self._pairs.add(pair)
        try:
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        finally:
            self._pairs.discard(pair)
            writer.close()
            back.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
            await self._flowing.wait()
            writer.write_eof()
        except (OSError, RuntimeError):
            writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None and not writer.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        writer.transport.abort()
