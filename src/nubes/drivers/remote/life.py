"""One life of an agent: a number of its own, a line to the control plane, and what it does on its machine.

It ends when the control plane may have given it up, is another one than before, or says that it may go; with it end all
its instances. It opens no file and no connection: those are given to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from nubes.drivers.remote import messages
from nubes.drivers.remote.carrying import Carrier
from nubes.drivers.remote.line import Connection, Line, OnClose, OnFrame
from nubes.drivers.remote.work import Site, Work


class Life:
    """`over` is called once, when it has ended: with whether the machine is to go."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, incarnation: int, carrier: Carrier, site: Callable[[Work], Site],
        over: Callable[[bool], None],
    ) -> None:  # fmt: skip
        self.incarnation = incarnation
        self.joined = False
        self.ended = False
        self._loop = loop
        self._over = over
        self.line = Line(incarnation, loop.time, self._said, lambda: self.end(False))
        self.work = Work(loop, carrier, self._send, lambda: self.end(True), site)
        loop.call_later(messages.BEAT_S, self._beat)

    def connected(self, make: Callable[[OnFrame, OnClose], Connection], since_s: float) -> None:
        """The control plane has let it in, over a connection that it asked for at `since_s`."""
        self.joined = True
        self.line.connect(make, since_s)

    def leave(self) -> None:
        """Asks to go: the control plane, if it knows this life, says when nothing is left to do here."""
        if self.joined:
            self._send(messages.Leaves())
        else:
            self.end(True)

    def end(self, whole: bool) -> None:
        """Ends everything at once; the machine is to go if `whole`."""
        if not self.ended:
            self.ended = True
            self.line.close()
            self.work.close()
            self._over(whole)

    def _beat(self) -> None:
        if self.ended:
            return
        if self.joined and self._loop.time() - self.line.known_s > messages.LEASE_S:
            self.end(False)
            return
        self.line.beat()
        self._loop.call_later(messages.BEAT_S, self._beat)

    def _said(self, message: bytes) -> None:
        self.work.ordered(messages.order(message))

    def _send(self, news: Any) -> None:
        self.line.send(messages.encode(news))
