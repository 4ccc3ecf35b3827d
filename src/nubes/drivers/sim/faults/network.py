"""Connections that delay, stall, and break with what is under way. Within one, what arrives, arrives in order.

Between connections there is no order, and whoever connects again may send again what was lost: so the other side sees
things late, twice, or never, as over TCP.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from nubes.drivers.sim.faults.loop import Timeline


class Endpoint:
    """One end of a connection. `received` gets each message, `lost` is called once when it is over.

    What is sent after the end goes nowhere.
    """

    def __init__(self, network: Network, link: str) -> None:
        self.received: Callable[[bytes], None] = lambda _: None
        self.lost: Callable[[], None] = lambda: None
        self.closed = False
        self.life = 0  # the control plane's, if it is its end
        self.other: Endpoint
        self.link = link
        self._network = network
        self._arrives = 0.0  # when the newest message on its way does

    def send(self, message: bytes) -> None:
        if not self.closed:
            self._network.carry(self, message)

    def close(self) -> None:
        """Hangs up: what was sent still arrives, then the other side learns of it."""
        if not self.closed:
            self.closed = True
            self._network.end(self)


class Network:
    """Carries messages between ends. `delay_s` draws how long one takes; links can be cut and healed by name."""

    def __init__(self, timeline: Timeline, r: random.Random, delay_s: Callable[[], float]) -> None:
        self._timeline = timeline
        self._r = r
        self._delay_s = delay_s
        self.cut_until: dict[str, float] = {}
        self.open: dict[Endpoint, None] = {}  # one end of each connection

    def connect(self, link: str, life: int = 0) -> tuple[Endpoint, Endpoint]:
        """Two ends of a new connection over the way of that name; the second is the control plane's of this life."""
        a, b = Endpoint(self, link), Endpoint(self, link)
        b.life = life
        a.other, b.other = b, a
        self.open[a] = None
        return a, b

    def _arrival(self, end: Endpoint) -> float:
        """Not before what was sent earlier, nor before a cut is healed."""
        at = max(self._timeline.now + self._delay_s(), end._arrives, self.cut_until.get(end.link, 0.0))
        end._arrives = at
        return at

    def carry(self, end: Endpoint, message: bytes) -> None:
        self._timeline.at(self._arrival(end), self._arrive, end.other, message, life=end.other.life)

    def _arrive(self, end: Endpoint, message: bytes) -> None:
        if not end.closed:
            end.received(message)

    def end(self, end: Endpoint) -> None:
        self._timeline.at(self._arrival(end), self._over, end.other, life=end.other.life)

    def _over(self, end: Endpoint) -> None:
        self.open.pop(end, None)
        self.open.pop(end.other, None)
        if not end.closed:
            end.closed = True
            end.lost()

    def snap(self, end: Endpoint) -> None:
        """The connection breaks: what is under way is lost; each side learns of it at a time of its own."""
        for side in (end, end.other):
            if not side.closed:
                side.closed = True
                self._timeline.at(self._timeline.now + self._delay_s(), side.lost, life=side.life)
        self.open.pop(end, None)
        self.open.pop(end.other, None)
