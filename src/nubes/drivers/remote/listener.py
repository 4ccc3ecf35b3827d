"""Where agents, and clients on their machines, come in: a TCP socket, at which each first shows that it may."""

from __future__ import annotations

import asyncio
import hmac
import os
import socket
from collections.abc import Callable
from typing import Any

from nubes.drivers.local import wire
from nubes.drivers.remote import messages
from nubes.kernel.errors import NubesError, UsageError

GREETING_S = 10.0  # how long one may take to say who it is
GREETING_BYTES = 64 << 10  # and how much

Welcome = Callable[[str, bytes, socket.socket], None]


def bind(where: str) -> socket.socket:
    """A listening socket for HOST:PORT. Raises `UsageError`."""
    host, colon, port = where.rpartition(":")
    if not colon or not port.isdigit():
        raise UsageError(f"{where!r} is no address to listen on.", "Write HOST:PORT, e.g. --agents 0.0.0.0:8643.")
    try:
        return socket.create_server((host or "0.0.0.0", int(port)), backlog=512)
    except OSError as error:
        raise UsageError(f"{where} cannot be listened on: {error.strerror}.", "Choose another address.") from None


class Listener:
    """Hands (kind, about, socket) of everyone who knows the token to `welcome`; what that raises is the refusal."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, token: str, welcome: Welcome) -> None:
        self._loop = loop
        self._sock = sock
        self._token = token
        self._welcome = welcome
        self._greetings: set[asyncio.Task[None]] = set()  # the loop itself would forget them
        sock.setblocking(False)
        loop.add_reader(sock.fileno(), self._accept)

    @property
    def port(self) -> int:
        port: int = self._sock.getsockname()[1]
        return port

    def close(self) -> None:
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        for greeting in self._greetings:
            greeting.cancel()

    def _accept(self) -> None:
        try:
            connection, _ = self._sock.accept()
        except (BlockingIOError, ConnectionError):
            return
        greeting = self._loop.create_task(self._greet(connection))
        self._greetings.add(greeting)
        greeting.add_done_callback(self._greetings.discard)

    async def _greet(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            async with asyncio.timeout(GREETING_S):
                nonce = os.urandom(16)
                await self._loop.sock_sendall(sock, wire.pack(messages.CHALLENGE, nonce))
                kind, about = self._checked(await read(self._loop, sock), nonce)
            self._welcome(kind, about, sock)
        except NubesError as error:
            await self._refuse(sock, error)
        except (OSError, TimeoutError, ValueError, TypeError):
            sock.close()

    def _checked(self, frame: list[Any], nonce: bytes) -> tuple[str, bytes]:
        said, protocol, kind, proof, about = frame
        if said != messages.JOIN or protocol != messages.PROTOCOL:
            raise UsageError("The control plane speaks another protocol.", "Use the same version of nubes everywhere.")
        if not hmac.compare_digest(proof, messages.proof(self._token, nonce, kind)):
            raise UsageError(
                "The token is not that of this control plane.", "Pass the file `token` of its data folder."
            )
        return kind, about

    async def _refuse(self, sock: socket.socket, error: NubesError) -> None:
        try:
            await self._loop.sock_sendall(sock, wire.pack(messages.REFUSED, error.message, error.hint))
        except OSError:
            pass
        sock.close()


async def read(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> list[Any]:
    """The next frame of a greeting, and not a byte more. Raises `ConnectionError` at the end, `ValueError`."""
    size = int.from_bytes(await _exactly(loop, sock, 4), "little")
    if size > GREETING_BYTES:
        raise ValueError(f"a greeting of {size} bytes")
    return wire.unbody(await _exactly(loop, sock, size))


async def _exactly(loop: asyncio.AbstractEventLoop, sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await loop.sock_recv(sock, size - len(data))
        if not more:
            raise ConnectionError("the other side closed the connection")
        data += more
    return data


async def connect(
    loop: asyncio.AbstractEventLoop, address: tuple[str, int], token: str, kind: str, about: bytes
) -> tuple[socket.socket, int]:
    """A connection that was let in, and this machine's number. Raises `UsageError` if it was refused, `OSError`."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        async with asyncio.timeout(GREETING_S):
            await loop.sock_connect(sock, address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _, nonce = await read(loop, sock)
            shown = messages.proof(token, nonce, kind)
            await loop.sock_sendall(sock, wire.pack(messages.JOIN, messages.PROTOCOL, kind, shown, about))
            said, *rest = await read(loop, sock)
    except BaseException:
        sock.close()
        raise
    if said == messages.REFUSED:
        sock.close()
        raise UsageError(*rest)
    return sock, rest[0]
