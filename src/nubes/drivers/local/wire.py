"""Frames between the control plane, its clients and its instances: a length, then a MessagePack array.

The first element of a frame is its kind, one of the numbers below.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

import msgspec

_LENGTH = struct.Struct("<I")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode
_CHUNK = 1 << 16  # small enough for the allocator to serve without new pages

# client -> control plane
HELLO, CALL, FETCH, UNFETCH, CANCEL, ASK, UNASK = range(7)
# control plane -> client
WELCOME, RESULT, ACCEPTED, YIELD, LOG, ANSWER, PENDING = range(10, 17)
# control plane -> instance
RUN, STOP, INTERRUPT = range(20, 23)
# instance -> control plane
READY, BROKEN, DONE, YIELDED, PRINTED = range(30, 35)
RESULTS = {DONE: 4, YIELDED: 2}  # where frames have what a function gave
# control plane -> parent in the process tree (one datagram each, with file descriptors)
FORK, GROW, REAP = range(40, 43)
# parent -> control plane: NEWS holds frames of the kinds FORKED and EXITED, in their order
NEWS, FORKED, EXITED, PARKED, FAILED_TO_GROW = range(50, 55)


def pack(*frame: Any) -> bytes:
    """A frame as bytes, ready to be sent."""
    body = _encode(frame)
    return _LENGTH.pack(len(body)) + body


def body(*frame: Any) -> bytes:
    """A frame without its length, for datagrams."""
    return _encode(frame)


def unbody(data: bytes) -> list[Any]:
    frame: list[Any] = _decode(data)
    return frame


class Splitter:
    """Cuts a byte stream into frames."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[list[Any]]:
        """The frames that are whole by now."""
        if self._rest:
            data = self._rest + data
        frames: list[list[Any]] = []
        start, size = 0, len(data)
        view = memoryview(data)
        while size - start >= 4:
            end = start + 4 + _LENGTH.unpack_from(data, start)[0]
            if end > size:
                break
            frames.append(_decode(view[start + 4 : end]))
            start = end
        self._rest = data[start:] if start else data
        return frames


class Stream:
    """Blocking frames over the descriptor of a connected socket. Raises `ConnectionError` when the other side is gone.

    For instances: a fork that makes no socket object has less to copy.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._splitter = Splitter()
        self._frames: list[list[Any]] = []

    def send(self, data: bytes) -> None:
        sent = os.write(self._fd, data)
        while sent < len(data):
            sent += os.write(self._fd, memoryview(data)[sent:])

    def recv(self) -> list[Any]:
        """The next frame."""
        while not self._frames:
            data = self._read()
            if not data:
                raise ConnectionError("the other side closed the connection")
            self._frames = self._splitter.feed(data)
            self._frames.reverse()
        return self._frames.pop()

    def waiting(self) -> bool:
        """Whether a frame can be taken without reading from the socket."""
        return bool(self._frames)

    def _read(self) -> bytes:
        return os.read(self._fd, _CHUNK)


class SocketStream(Stream):
    """The same over a socket, which may have a timeout: `recv` raises `TimeoutError` when it has passed."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock.fileno())
        self.sock = sock

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def alive(self) -> bool:
        """Whether the other side is still there, as far as is known without waiting."""
        try:
            return self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        self.sock.close()

    def _read(self) -> bytes:
        return self.sock.recv(_CHUNK)


DATAGRAM_BYTES = 1 << 20  # the largest

_datagram = bytearray(DATAGRAM_BYTES)  # used again and again
_SPACE = socket.CMSG_SPACE(8)
_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)  # numbers, since enums cost a fork dearly
_CLOEXEC_NOW = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)


def send_with_fds(sock: socket.socket, data: bytes, fds: tuple[int, ...]) -> None:
    """One datagram, which takes up to two descriptors along."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
    sock.sendmsg([data], rights)


def recv_with_fds(sock: socket.socket, wait: bool = True) -> tuple[bytes, tuple[int, ...]]:
    """The next datagram and the descriptors that came with it; empty bytes when the other side is gone.

    Raises `BlockingIOError` if there is none yet and the caller, or the socket, does not wait.
    """
    size, ancillary, _, _ = sock.recvmsg_into([_datagram], _SPACE, _CLOEXEC if wait else _CLOEXEC_NOW)
    fds = struct.unpack(f"{len(ancillary[0][2]) // 4}i", ancillary[0][2]) if ancillary else ()
    return bytes(memoryview(_datagram)[:size]), fds
