"""A stream of messages that outlives connections: each is given once and in order, whatever breaks in between.

Sans-I/O. Each side has an incarnation: a number that a process draws when it starts. Messages are numbered, kept until
they are acknowledged, and sent again over the next connection. A side that meets another incarnation than before knows
that what was under way is lost: the old messages are dropped, and its owner is told so.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

HELLO, DATA, ACK = range(3)
ACK_EVERY = 64  # messages received without a word back

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class LinkBroken(Exception):
    """A frame makes no sense after those before it: the connection is to be closed, and another one made."""


class Link:
    """One end. Give it what `frames` a connection brings; send what it returns, in order, while there is one."""

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.peer = 0  # the other side's; 0 until it is known
        self.open = False  # whether the other side has said hello on this connection
        self._sent = 0  # number of the newest message
        self._kept: deque[tuple[int, bytes]] = deque()  # sent, or to be sent, and not acknowledged
        self._received = 0  # number of the newest message from the other side
        self._told = 0  # what it knows of that

    @property
    def unacknowledged(self) -> int:
        return len(self._kept)

    def connected(self) -> list[bytes]:
        """A connection is there: what to send first."""
        self.open = False
        return [_encode((HELLO, self.incarnation, self.peer, self._received))]

    def disconnected(self) -> None:
        """It is gone: messages are kept until the next."""
        self.open = False

    def send(self, message: bytes) -> list[bytes]:
        """What to send for a message: nothing yet, if there is no connection."""
        self._sent += 1
        self._kept.append((self._sent, message))
        return [self._data(self._sent, message)] if self.open else []

    def beat(self) -> list[bytes]:
        """What tells the other side that this one lives, and what it has received."""
        return [self._ack()] if self.open else []

    def receive(self, frame: bytes) -> tuple[list[bytes], list[bytes], bool]:
        """(messages for the owner, frames to send, whether the other side is a new one). Raises `LinkBroken`."""
        try:
            kind, *rest = _decode(frame)
            if kind == HELLO:
                return self._hello(*rest)
            if not self.open:
                raise LinkBroken("a message before the hello")
            return (self._data_in if kind == DATA else self._acknowledged)(*rest)
        except (msgspec.DecodeError, TypeError, ValueError) as error:
            raise LinkBroken(f"no frame: {error}") from None

    def _hello(self, incarnation: int, known: int, received: int) -> tuple[list[bytes], list[bytes], bool]:
        if self.open and incarnation == self.peer:
            return [], [], False  # said twice
        lost = self.peer not in (0, incarnation)
        if lost:
            self._sent, self._received = 0, 0
            self._kept.clear()
        self.peer, self.open, self._told = incarnation, True, self._received
        if known == self.incarnation and not lost:  # else it has not heard of this one yet
            self._forget(received)
        return [], [self._data(number, message) for number, message in self._kept], lost

    def _data_in(self, number: int, received: int, message: bytes) -> tuple[list[bytes], list[bytes], bool]:
        self._forget(received)
        if number <= self._received:
            return [], [self._ack()], False  # it came before
        if number > self._received + 1:
            raise LinkBroken(f"message {number} after {self._received}")
        self._received = number
        answer = [self._ack()] if number - self._told >= ACK_EVERY else []
        return [message], answer, False

    def _acknowledged(self, received: int) -> tuple[list[bytes], list[bytes], bool]:
        self._forget(received)
        return [], [], False

    def _forget(self, received: int) -> None:
        if received > self._sent:
            raise LinkBroken(f"message {received} was never sent")
        while self._kept and self._kept[0][0] <= received:
            self._kept.popleft()

    def _data(self, number: int, message: Any) -> bytes:
        self._told = self._received
        return _encode((DATA, number, self._received, message))

    def _ack(self) -> bytes:
        self._told = self._received
        return _encode((ACK, self._received))
