"""One end of the way between a control plane and an agent: a link, and the connection under it while there is one.

Who is to know for how long the other side counts on it, the agent, beats: it says what time it is by its own clock, and
the other side says that back at once. So it knows that at that time, or later, it was heard. How long a message was on
its way does not matter, nor whether only one direction is cut, nor what lay unread while the process stood still.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from nubes.drivers.remote import messages
from nubes.kernel.link import Link, LinkBroken

OnFrame = Callable[[list[Any]], None]
OnClose = Callable[[], None]


class Connection(Protocol):
    """Takes bytes in order, until it is closed or breaks."""

    def send(self, data: bytes) -> None: ...
    def close(self) -> None: ...


Connect = Callable[[Any, Any, OnFrame, OnClose], Connection]  # of a loop and a socket: `local.peer.Peer`, or a model


class Line:
    """`said` takes each message once and in order; `anew`: the other side is another one; `cut`: a connection broke."""

    def __init__(
        self, incarnation: int, clock: Callable[[], float], said: Callable[[bytes], None], anew: Callable[[], None],
        cut: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._link = Link(incarnation)
        self._clock = clock
        self._said = said
        self._anew = anew
        self._cut = cut
        self._connection: Connection | None = None
        self.heard_s = 0.0  # when something came from the other side
        self.known_s = 0.0  # until when the other side certainly has heard of this one

    @property
    def connected(self) -> bool:
        return self._connection is not None

    @property
    def other(self) -> int:
        """The other side's incarnation; 0 until it is known."""
        return self._link.peer

    def connect(self, make: Callable[[OnFrame, OnClose], Connection], since_s: float, first: bytes = b"") -> None:
        """A connection takes the place of the one before. It was asked for at `since_s`; `first` begins it."""
        self.close()
        connection = make(lambda frame: self._received(connection, frame), lambda: self._gone(connection))
        self._connection = connection
        self.heard_s, self.known_s = self._clock(), max(self.known_s, since_s)
        if first:
            connection.send(first)
        self._write(self._link.connected())

    def send(self, message: bytes) -> None:
        """Goes now, or over the next connection."""
        self._write(self._link.send(message))

    def beat(self) -> None:
        """Says that this side lives, and wants to hear that it is known."""
        if self._link.open:
            self._write(self._link.beat(), messages.beat(self._clock()))

    def close(self) -> None:
        """Without `cut`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._link.disconnected()
            connection.close()

    def _gone(self, connection: Connection) -> None:
        if self._connection is connection:
            self._connection = None
            self._link.disconnected()
            self._cut()

    def _received(self, connection: Connection, frame: list[Any]) -> None:
        if self._connection is not connection:
            return
        self.heard_s = self._clock()
        if frame[0] == messages.BEAT:
            self._write(self._link.beat(), messages.heard(frame[1]))
        elif frame[0] == messages.HEARD:
            self.known_s = max(self.known_s, frame[1])
        else:
            self._linked(connection, frame[1])

    def _linked(self, connection: Connection, frame: bytes) -> None:
        try:
            said, answer, anew = self._link.receive(frame)
        except LinkBroken:
            connection.close()
            return
        self._write(answer)
        if anew:
            self._anew()
        for message in said:
            self._said(message)

    def _write(self, frames: list[bytes], last: bytes = b"") -> None:
        if self._connection is not None and (frames or last):
            self._connection.send(messages.linked(frames) + last)
